"""What the command line does before any command runs, and the two small commands."""

import subprocess
import sys

from click.testing import CliRunner

from fastenh.cli import main


def test_help_imports_no_torch():
    program = (
        "import sys; sys.argv = ['fastenh', '--help']\n"
        "from fastenh.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'soundfile', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "enhance" in done.stdout


def test_worker_processes_of_the_metrics_import_no_torch():
    program = "import sys, fastenh.evaluate.metrics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_enhancing_imports_nothing_of_training_or_data_and_none_of_the_extras():
    program = (
        "import sys, fastenh.cli.enhance\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('fastenh.')}\n"
        "assert 'enhance' in rooms and not {'train', 'data'} & rooms, rooms\n"
        "import fastenh.cli.evaluate, fastenh.cli.data, fastenh.enhance.cluster\n"
        "extras = {'ray', 'fsspec', 'upath', 's3fs'} & set(sys.modules)\n"
        "assert not extras, extras\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models():
    result = CliRunner().invoke(main, ["models"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for text in ("904,705", "1,811,009", "2,450,945", "2,451,457", "8.7"):
        assert text in result.output


def test_info_says_which_backend_and_why():
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 0
    assert "backend on cpu: cpu (forms of the operations made for processors)" in result.output
    bad = CliRunner().invoke(main, ["info"], env={"FASTENH_BACKEND": "fast"})
    assert bad.exit_code == 2
    assert "FASTENH_BACKEND must be one of" in bad.output


def test_unknown_command():
    assert CliRunner().invoke(main, ["enchant"]).exit_code == 2


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fastenh", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fastenh, version")
