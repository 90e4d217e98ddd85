"""nbgrader's settings for this course. Add your own: `qlora-lab classroom release` keeps this file."""

c = get_config()  # noqa: F821  (nbgrader defines it)

c.CourseDirectory.course_id = "qlora-lab"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}

# No kernel runs what students wrote: in place of nbgrader's Execute, each answer is run in a sandbox and judged outside
# of it. Keep it so, also where you call `nbgrader autograde` or grade with the formgrader.
c.Autograde.autograde_preprocessors = [
    "qlora_lab.classroom.gradebook.SandboxVerdicts",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
