"""A class taught from the notebooks: assignments made of them, students' answers graded in a sandbox.

`release` makes an nbgrader course of the notebooks. `submissions` reads what students handed in, `sandbox` runs their
answers where they can do no harm, `hidden_tests` judges what these gave, `gradebook` lets nbgrader record it, `grading`
goes through a class, and `results` says how it went.
"""
