"""Coverage-guided fuzzing of everything that reads a header, with Atheris; and, without it, a replay of the corpus.

    python fuzz/fuzz.py gguf                     the fuzzer, until it finds something or is stopped
    python fuzz/fuzz.py gguf -max_total_time=300 what follows the target goes to libFuzzer
    python fuzz/fuzz.py --replay                 every committed input once, every target; needs no Atheris

The properties stand in tests/support/fuzz_targets.py, where the default test run uses them too.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TOKENS = HERE / "tokens"
"""Words of the formats, which the fuzzer would need hours to guess."""

sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests"), str(HERE)]


def replay() -> int:
    """Runs every committed input; an exception is a finding. Prints how many were accepted and refused."""
    from support.fuzz_targets import TARGETS

    for name, target in TARGETS.items():
        files = sorted((CORPUS / name).iterdir())
        accepted = sum(target(file.read_bytes()) for file in files)
        print(f"{name}: {len(files)} inputs, {accepted} accepted, {len(files) - accepted} refused")
    return 0


def fuzz(name: str, options: list[str]) -> int:
    """Runs Atheris on one target. New inputs go to a folder outside the repository, which is printed."""
    try:
        import atheris
    except ImportError:
        print("Atheris is not installed here. Try: pip install atheris", file=sys.stderr)
        return 3
    with atheris.instrument_imports(include=["edgecore.checkpoint", "json"]):
        # Imported here, so that it is instrumented; families are imported on first use, so all of them are used.
        from edgecore.checkpoint import families, opening  # noqa: F401

        families.known()
        from support.fuzz_targets import TARGETS
    import mutators

    tokens = TOKENS / f"{name}.dict"
    words = tuple(word.strip('"\\') for word in tokens.read_text().splitlines() if word.startswith('"\\"'))
    mutate = mutators.of(name, words)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """Half of all by libFuzzer's own means, which know what raised the coverage."""
        other = mutate(data, seed) if mutate is not None and seed % 4 < 2 else None
        return other[:most] if other is not None else atheris.Mutate(data, most)

    work = Path(tempfile.gettempdir()) / "edgecore-fuzz"
    found, fewest = work / name, work / f"{name}-fewest"
    for folder in (found, fewest):
        folder.mkdir(parents=True, exist_ok=True)
    folders = [found, CORPUS / name]
    if "-merge=1" in options:
        for good in CORPUS.glob(f"{name}/good-*"):
            shutil.copy(good, fewest)
        folders.insert(0, fewest)
    print(f"new inputs, and what fails, go to {folders[0]}")
    target = TARGETS[name]
    arguments = [
        f"-dict={tokens}", f"-artifact_prefix={found}/", "-max_len=4096", "-timeout=5", "-rss_limit_mb=1024", *options,
    ]  # fmt: skip
    # What libFuzzer types into a shell to start itself again, when it merges or minimises.
    again = shlex.join([sys.executable, str(HERE / "fuzz.py"), name])
    atheris.Setup(
        [again, *arguments, *map(str, folders)],
        lambda data: target(data) and None,
        **({"custom_mutator": mutated} if mutate else {}),
    )
    atheris.Fuzz()
    return 0


def main(arguments: list[str]) -> int:
    if arguments == ["--replay"]:
        return replay()
    names = sorted(folder.name for folder in CORPUS.iterdir())
    if not arguments or arguments[0] not in names:
        print(f"usage: fuzz.py --replay, or fuzz.py {'|'.join(names)} [libFuzzer options]", file=sys.stderr)
        return 2
    return fuzz(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
