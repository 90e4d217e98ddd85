"""A class taught from the notebooks: assignments made of them, students' answers graded in a sandbox.

`release` makes an nbgrader course of the notebooks. `submissions` reads what students handed in, `sandbox` runs their
answers where they can do no harm, `hidden_tests` judges what these gave, `gradebook` enters the points into nbgrader's
records, `grading` goes through a class, and `results` says how it went.
"""
