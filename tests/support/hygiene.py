"""
Checks of files as files: parsable YAML and TOML, their ends, their size, no private key.

`python -m tests.support.hygiene FILE…` prints one line per finding; a commit hook runs it on what
is committed, and a test on everything that git knows.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

__all__ = ["findings"]

LARGE: Final = 512 * 1024  # bytes; a source file never is, a dump or a program is

_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{16}")
_CONFLICT: Final = re.compile(rb"^(?:<{7} |>{7} )", flags=re.MULTILINE)


def findings(path: Path) -> Iterator[str]:
    """Yield what is wrong with a file, one line each."""
    content = path.read_bytes()
    if len(content) > LARGE:
        yield f"{path}: larger than {LARGE // 1024} KiB"
        return
    if _PRIVATE_KEY.search(content):
        yield f"{path}: holds a private key"
    if b"\0" in content:
        return  # not text
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        yield f"{path}: does not end in exactly one line break"
    if _CONFLICT.search(content):
        yield f"{path}: holds a merge conflict"
    if b"\r" in content:
        yield f"{path}: holds carriage returns"
    try:
        if path.suffix in {".yaml", ".yml"}:
            list(yaml.safe_load_all(content))
        elif path.suffix == ".toml":
            tomllib.loads(content.decode())
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        yield f"{path}: {' '.join(str(error).split())}"


def main() -> int:
    """Check the files named by the arguments; 1 when something was found."""
    found = [line for name in sys.argv[1:] for line in findings(Path(name))]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
