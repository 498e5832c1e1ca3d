"""Processes of tests start with what they need loaded, and otherwise fresh."""

import forked


def test_all_is_loaded_before_the_process_starts(tmp_path):
    status, printed = forked.python("import sys; print('warm' in sys.modules, 'torch' in sys.modules)", tmp_path)
    assert (status, printed.split()) == (0, ["True", "True"])


def test_a_process_has_names_settings_and_a_folder_of_its_own(tmp_path):
    source = "import os; print(os.environ['A'], os.getcwd(), 'torch' in globals()); a = 1"
    assert forked.python(source, tmp_path, A="1") == (0, f"1 {tmp_path} False\n")
    status, printed = forked.python("print(a)", tmp_path)
    assert status == 1 and "NameError: name 'a' is not defined" in printed
