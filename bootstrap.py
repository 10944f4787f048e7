#!/usr/bin/env python3
"""The README's two commands, from a clone to a result, without a step by hand before them.

    python3 bootstrap.py quickstart    the main job on a real model
    python3 bootstrap.py test          everything that CI runs

Environments go to .envs/NAME, one for the core and one a plugin, because plugins must work without each other, and one
each for end-to-end tests and the conformance suite. They are kept until a pyproject.toml, constraints.txt or the
interpreter changes. A folder of wheels named by EDGECORE_WHEELS is searched first, so a machine can keep what takes
minutes to compile; pip's own cache keeps it too.

Standard library only, and readable by any Python 3.7+, so that an old one gets a sentence and not a SyntaxError.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent
ENVS = ROOT / ".envs"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 11)
WINDOWS = os.name == "nt"
QUICKSTART_PLUGIN = "llamacpp"
CONFORMANT = ("reference", QUICKSTART_PLUGIN, "mlx", "onnxruntime", "openvino")
"""Plugins whose runtimes can share an environment: the suite's own tests run each of them whole."""
NOTHING_SELECTED = 5
"""pytest's exit code."""


class Stop(Exception):
    """A sentence for the user; nothing else is printed."""


class Environment:
    """One virtual environment: the core, some plugins, other distributions of this repository, and requirements."""

    def __init__(self, name, plugins, groups, extras="", beside=()):
        self.name = name
        self.plugins = [ROOT / "plugins" / ("edgecore-" + plugin) for plugin in plugins]
        self.folders = self.plugins + [ROOT / folder for folder in beside]
        self.editable = [str(ROOT) + extras] + [str(folder) for folder in self.folders]
        self.groups = groups
        self.folder = ENVS / name
        self.stamp = self.folder / "bootstrap.stamp"
        self.log = ENVS / (name + ".log")

    def program(self, name):
        """Path of a console script of this environment."""
        return self.folder / ("Scripts" if WINDOWS else "bin") / (name + (".exe" if WINDOWS else ""))

    @property
    def requirements(self):
        groups = toml(ROOT / "pyproject.toml")["dependency-groups"]
        return sorted({requirement for group in self.groups for requirement in members(groups, group)})

    @property
    def digest(self):
        """Of all that decides what gets installed."""
        told = [sys.version, str(ROOT), repr(self.editable), repr(self.requirements)]
        files = [CONSTRAINTS, ROOT / "pyproject.toml"] + [folder / "pyproject.toml" for folder in self.folders]
        told += [path.read_text(encoding="utf-8") for path in files]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()

    @property
    def stands(self):
        return self.stamp.is_file() and self.stamp.read_text() == self.digest

    def make(self):
        """Creates it, or does nothing where it stands already."""
        if self.stands:
            say("environment {}: stands".format(self.name))
            return
        if self.folder.exists():
            shutil.rmtree(str(self.folder))
        ENVS.mkdir(exist_ok=True)
        self.log.write_text("")
        uv = usable_uv()
        python = str(self.program("python"))
        if uv:
            self._run("creating it with uv", [uv, "venv", "--python", sys.executable, str(self.folder)])
            install = [uv, "pip", "install", "--python", python]
        else:
            self._run("creating it", [sys.executable, "-m", "venv", str(self.folder)])
            install = [
                python,
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--progress-bar=off",
            ]
        install += ["-c", str(CONSTRAINTS)]
        wheels = os.environ.get("EDGECORE_WHEELS")
        if wheels:
            install += ["--find-links", wheels]
        for requirement in self.editable:
            install += ["-e", requirement]
        self._run("installing", install + self.requirements)
        self.stamp.write_text(self.digest)

    def _run(self, what, command):
        """One step with its output on one moving line; the whole of it goes to the log."""
        label = "environment {}: {}".format(self.name, what)
        with self.log.open("a", encoding="utf-8") as log:
            status = watch(label, command, log)
        if status:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
            raise Stop("{} failed (exit {}); the end of {}:\n  {}".format(label, status, self.log, "\n  ".join(tail)))


def toml(path):
    import tomllib

    with path.open("rb") as file:
        return tomllib.load(file)


def members(groups, name):
    """The requirements of a dependency group, its includes resolved."""
    for item in groups[name]:
        if isinstance(item, str):
            yield item
        else:
            yield from members(groups, item["include-group"])


def say(text):
    print(text, flush=True)


def clean_environ():
    """Nothing of the caller's Python may reach into an environment of ours."""
    ours = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "EDGECORE_ONLY")
    }
    ours["PYTHONNOUSERSITE"] = "1"
    return ours


def watch(label, command, log):
    """Runs a command; shows elapsed time and its newest line, on one line of a terminal or now and then in a log."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=clean_environ(),
        cwd=str(ROOT), universal_newlines=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    terminal = sys.stdout.isatty()
    start, shown, newest, line = time.monotonic(), 0.0, "", ""
    try:
        while line is not None:
            try:
                line = lines.get(timeout=1)
                if line:
                    log.write(line)
                    newest = newest if line.startswith("WARNING") else line.strip() or newest
            except queue.Empty:
                pass
            elapsed = time.monotonic() - start
            if elapsed - shown >= (0.2 if terminal else 15):
                shown = elapsed
                text = "{}: {:.0f} s  {}".format(label, elapsed, newest)
                width = shutil.get_terminal_size().columns - 1
                print(
                    "\r" + text[:width].ljust(width) if terminal else text[:160],
                    end="" if terminal else "\n",
                    flush=True,
                )
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    text = "{}: {} in {:.0f} s".format(label, "failed" if status else "done", time.monotonic() - start)
    say(("\r" + text.ljust(shutil.get_terminal_size().columns - 1)) if terminal else text)
    return status


def usable_uv():
    """uv where it is installed, unless pip was told where packages come from: uv does not read what pip is told."""
    uv = shutil.which("uv")
    if not uv:
        return None
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        universal_newlines=True,
    ).stdout  # fmt: skip
    return None if any(word in told for word in ("index-url", "find-links", "no-index")) else uv


def check_python(version=sys.version_info):
    if tuple(version[:2]) < OLDEST:
        raise Stop(
            "edgecore needs Python {}.{} or newer; this is {}.{} ({}).\n"
            "  try: python3.12 bootstrap.py, or install a newer Python".format(*OLDEST, *version[:2], sys.executable)
        )


def check_venv():
    try:
        import ensurepip
        import venv
    except ImportError:
        ensurepip = venv = None
    if not (ensurepip and venv) and not usable_uv():
        raise Stop("this Python cannot make environments.\n  try: sudo apt install python3-venv (Debian, Ubuntu)")


def check_compiler(plugins):
    """Before anything starts: a plugin whose runtime is compiled on this machine needs a C++ compiler."""
    needing = [name for name in plugins if "compiler" in manifest(name).get("runtime", {}).get("needs", "")]
    needing = [name for name in needing if not ready_wheel(manifest(name)["runtime"]["distribution"])]
    if needing and not has_compiler():
        how = {
            "Darwin": "xcode-select --install",
            "Windows": "install the Visual Studio Build Tools with the C++ workload",
        }.get(platform.system(), "sudo apt install build-essential (Debian, Ubuntu), sudo dnf install gcc-c++ (Fedora)")
        raise Stop(
            "no C++ compiler was found; {} compiles its runtime here.\n  try: {}".format(", ".join(needing), how)
        )


def manifest(plugin):
    found = list((ROOT / "plugins" / ("edgecore-" + plugin)).glob("edgecore_*/backend.toml"))
    return toml(found[0]) if found else {}


def ready_wheel(distribution):
    wheels = os.environ.get("EDGECORE_WHEELS")
    return bool(wheels) and any(Path(wheels).glob(distribution.replace("-", "_") + "-*.whl"))


def has_compiler():
    if platform.system() == "Darwin":  # /usr/bin/c++ is there without the tools, and asks for them when run
        return subprocess.call(["xcode-select", "-p"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    if WINDOWS:
        installer = Path(os.environ.get("PROGRAMFILES(X86)", "C:/")) / "Microsoft Visual Studio/Installer/vswhere.exe"
        return bool(shutil.which("cl") or installer.is_file())
    return any(
        shutil.which(name) for name in (os.environ.get("CXX", "").split() or [""])[:1] + ["c++", "g++", "clang++"]
    )


def plugin_names():
    return sorted(path.parent.name[len("edgecore-") :] for path in ROOT.glob("plugins/edgecore-*/pyproject.toml"))


def environments():
    """By name: the core's own (with the reference plugin and the tools), one a plugin, one for end-to-end tests,
    one for the conformance suite."""
    names = plugin_names()
    proven = [n for n in names if n in ("reference", QUICKSTART_PLUGIN)]
    groups = toml(ROOT / "pyproject.toml")["dependency-groups"]
    own = {name: name + "-test" if name + "-test" in groups else "plugin-test" for name in names}
    made = {"core": Environment("core", [n for n in names if n == "reference"], ["test", "lint"], "[hub]")}
    made.update({name: Environment(name, [name], [own[name]]) for name in names})
    made["e2e"] = Environment("e2e", proven, ["plugin-test", "originals"])
    conformant = [n for n in names if n in CONFORMANT]
    made["conformance"] = Environment("conformance", conformant, ["conformance-test"], beside=["conformance"])
    return made


def one_mark(arguments):
    """pytest heeds the last -m alone: all of them joined, ours and the caller's."""
    rest, marks = list(arguments), []
    while "-m" in rest[:-1]:
        place = rest.index("-m")
        marks.append("({})".format(rest[place + 1]))
        del rest[place : place + 2]
    return rest + (["-m", " and ".join(marks)] if marks else [])


class Tally:
    """Counts of every check that ran."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, label, environment, command):
        """One tool that passes or fails as a whole."""
        self._say(label)
        if subprocess.call([str(environment.program(command[0]))] + command[1:], cwd=str(ROOT), env=clean_environ()):
            self.failed += 1
        else:
            self.passed += 1

    def pytest(self, label, environment, arguments, callers=()):
        """A run of pytest, counted from its JUnit report: every test one by one. A part of which the caller's own
        arguments left nothing has not failed."""
        self._say(label)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [str(environment.program("python")), "-m", "pytest", "-q", "--junitxml", str(report)]
            command += one_mark(list(arguments) + list(callers))
            status = subprocess.call(command, cwd=str(ROOT), env=clean_environ())
            if status == NOTHING_SELECTED and callers:
                status = 0
            try:
                suites = ElementTree.parse(str(report)).getroot().iter("testsuite")
                counts = [
                    {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")} for suite in suites
                ]
            except (OSError, ElementTree.ParseError):
                counts = []
        total = {k: sum(count[k] for count in counts) for k in ("tests", "failures", "errors", "skipped")}
        failed = total["failures"] + total["errors"]
        self.failed += max(failed, 1) if status else failed
        self.skipped += total["skipped"]
        self.passed += total["tests"] - failed - total["skipped"]

    @staticmethod
    def _say(label):
        say("\n=== {} ===".format(label))

    def __str__(self):
        return "{} passed, {} failed, {} skipped".format(self.passed, self.failed, self.skipped)


def run_quickstart(arguments):
    check_compiler([QUICKSTART_PLUGIN])
    environment = environments()[QUICKSTART_PLUGIN]
    environment.make()
    program = environment.program("edgecore")
    status = subprocess.call([str(program), "quickstart"] + arguments, env=clean_environ())
    if not status:
        say("\nNow try: {} --help".format(os.path.relpath(str(program))))
    return status


def run_test(only, pytest_arguments):
    start = time.monotonic()
    all_of_them = environments()
    unknown = set(only) - set(all_of_them)
    if unknown:
        raise Stop("no such environment: {}\n  supported: {}".format(", ".join(unknown), ", ".join(all_of_them)))
    chosen = {name: e for name, e in all_of_them.items() if not only or name in only}
    check_compiler({folder.name[len("edgecore-") :] for e in chosen.values() for folder in e.plugins})
    tally = Tally()
    for name, environment in chosen.items():
        environment.make()
        if name == "core":
            tally.check("lint: ruff", environment, ["ruff", "check", "."])
            tally.check("format: ruff", environment, ["ruff", "format", "--check", "."])
            tally.check("types: mypy", environment, ["mypy"])
            elsewhere = ["--ignore=tests/e2e", "--ignore-glob=*/test_against_*.py"]
            # Side by side by file: these start many processes that mostly wait. Runtimes that use every core run alone.
            side_by_side = ["-n", "auto", "--dist", "loadfile"]
            tally.pytest("tests of the core", environment, ["tests"] + elsewhere + side_by_side, pytest_arguments)
        elif name == "e2e":
            against = sorted(str(path) for path in ROOT.glob("tests/*/test_against_*.py"))
            tally.pytest("end-to-end tests", environment, ["tests/e2e"] + against, pytest_arguments)
        elif name == "conformance":
            # What times a plugin or watches the processor would measure its neighbours: it runs alone, after the rest.
            folder = "conformance/tests"
            beside = [folder, "-m", "not alone", "-n", "auto", "--dist", "worksteal"]
            tally.pytest("tests of the conformance suite", environment, beside, pytest_arguments)
            tally.pytest("those that run alone", environment, [folder, "-m", "alone"], pytest_arguments)
        elif (ROOT / "plugins" / ("edgecore-" + name) / "tests").is_dir():
            folder = "plugins/edgecore-{}/tests".format(name)
            tally.pytest("tests of the plugin {}".format(name), environment, [folder], pytest_arguments)
    say("\n{:.0f} s in all".format(time.monotonic() - start))
    say(str(tally))
    return 1 if tally.failed or not tally.passed else 0


def main():
    parser = argparse.ArgumentParser(prog="bootstrap.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", metavar="quickstart|test")
    verbs.add_parser("quickstart", help="set up and run the main job on a real model", add_help=False)
    test = verbs.add_parser("test", help="set up and run every check")
    test.add_argument(
        "--only", action="append", default=[], metavar="ENV", help="core, e2e, conformance or a plugin; repeat for more"
    )
    options, rest = parser.parse_known_args()
    if not options.verb:
        parser.error("say quickstart or test")
    try:
        check_python()
        check_venv()
        return run_quickstart(rest) if options.verb == "quickstart" else run_test(options.only, rest)
    except Stop as error:
        print("error: {}".format(error), file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
