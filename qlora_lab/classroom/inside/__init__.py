"""What runs inside the sandbox: a process that imports torch and nothing of this package, and forks sealed children.

These modules are loaded twice, by the grader and by that process (where the rest of the package must not be in memory),
so they import each other relatively and nothing else of the package.
"""
