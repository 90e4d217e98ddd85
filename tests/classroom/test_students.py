"""Whose a file is, as learning platforms, students and operating systems write names."""

import pytest

from qlora_lab.classroom.students import class_folders, student_of

NAMES = ["01_four_bit_quantization", "03_lora"]


@pytest.mark.parametrize(
    ("path", "student"),
    [
        ("alice/01_four_bit_quantization/01_four_bit_quantization.ipynb", "alice"),
        ("Alice Smith_1234_assignsubmission_file_/x.ipynb", "Alice Smith_1234"),
        ("Alice Smith_1234_assignsubmission_file_x.ipynb", "Alice Smith_1234"),
        ("lovelaceada_12_3456_01_four_bit_quantization.ipynb", "lovelaceada_12"),
        ("lovelaceada_LATE_12_7890_03-2.ipynb", "lovelaceada_12"),
        ("lovelaceada_12_7890_homework/deep/x.ipynb", "lovelaceada_12"),
        ("12345-678 - Ada Lovelace - Nov 27, 2026 1204 PM/x.ipynb", "Ada Lovelace_12345"),
        ("12345-910 - Ada Lovelace- 4 December, 2026 904 AM/x.ipynb", "Ada Lovelace_12345"),
        ("12345-910 - Ada King-Noel - Dec 4, 2026 904 AM/x.ipynb", "Ada King-Noel_12345"),
        ("Home_work_ada1_attempt_2026-11-27-12-04-59_x.ipynb", "ada1"),
        # What a student named the file comes after what a platform wrote, and is none of another's.
        ("HW_eve_attempt_2026-11-27-12-04-59_x_ada_attempt_2026-11-27-12-04-59.ipynb", "eve"),
        ("HW_eve_attempt_2026-11-27-12-04-59_ada_attempt_2026-11-27-12-04-59_x/y.ipynb", "eve"),
        ("Eve_7_assignsubmission_file_Ada_8_assignsubmission_file_x.ipynb", "Eve_7"),
        ("eve_66_9999_HW_ada_attempt_2026-11-27-12-04-59.ipynb", "eve_66"),
        ("12345-678 - Eve - Nov 27, 2026 1204 PM/12345-679 - Ada - Nov 27, 2026 1204 PM.ipynb", "Eve_12345"),
        ("Homework_1_20261234_attempt_2026-11-27-12-04-59_x.ipynb", "20261234"),  # whose name is a number
        ("Homework_1_20261234_attempt_2026-11-27-12-04-59_eve_66_9999_x.ipynb", "20261234"),
        ("hw_2_2026_ada.ipynb", "hw_2_2026_ada"),  # a year, not a submission
        ("ada_01_2026_final.ipynb", "ada _2026_final"),
        ("alice_01.ipynb", "alice"),
        ("01_four_bit_quantization_alice (1).ipynb", "alice"),
        ("Copy of 01_four_bit_quantization - alice.ipynb", "alice"),
        ("alice-03_lora-Copy1.ipynb", "alice"),
        ("s2001234.ipynb", "s2001234"),
        ("=cmd|x!A1/x.ipynb", "cmd_x_A1"),
        ("@alice, bob/x.ipynb", "alice_ bob"),
        ("Zoë 山田/x.ipynb", "Zoë 山田"),
        ("Mu\u0308ller/x.ipynb", "M\u00fcller"),
        ("mu\u0308ller_01.ipynb", "m\u00fcller"),
        ("नीता/x.ipynb", "नीता"),
        ("नेता/x.ipynb", "नेता"),
        pytest.param("\U00020000" * 90 + "/x.ipynb", "\U00020000" * 50, id="longer than a file name may be"),
        ("../../etc/x.ipynb", None),
        ("01.ipynb", None),
        ("01_four_bit_quantization.ipynb", None),
    ],
)
def test_who_handed_it_in(path, student):
    if student is None:
        with pytest.raises(ValueError, match="no student's name"):
            student_of(path, NAMES)
    else:
        assert student_of(path, NAMES) == student


@pytest.mark.parametrize(
    ("paths", "folders"),
    [
        (["all/ada/x.ipynb", "all/bob/x.ipynb"], {"all/"}),
        (["all/all/ada/x.ipynb", "all/all/bob/y/x.ipynb"], {"all/all/"}),
        (["all/ada_12_345_x.ipynb", "all/bob_13_346_x.ipynb"], {"all/"}),
        (["hw1/ada_12_345_x.ipynb", "hw3/ada_12_399_x.ipynb"], {"hw1/", "hw3/"}),
        (["hw1/ada_12_345_x.ipynb", "bob/ada_12_399_x.ipynb", "carol/x.ipynb"], set()),
        (["ada_12_345_x/a.ipynb", "ada_12_345_x/b.ipynb"], set()),
        (["ada/x.ipynb", "bob/x.ipynb"], set()),
        (["ada/01/x.ipynb", "ada/03_lora/x.ipynb"], set()),
        (["ada/x.ipynb", "ada/older/x.ipynb", "ada/old/x.ipynb"], set()),
        (["ada/deep/x.ipynb"], set()),
        ([], set()),
    ],
)
def test_folders_that_are_no_students(paths, folders):
    assert class_folders(paths, NAMES) == folders
