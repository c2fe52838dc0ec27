"""Looks up what is locked in a list of known vulnerabilities: `python -m tests.audit requirements/run.txt`.

pip-audit asks the index's advisories, and says that nothing was found where it could ask for nothing. This says how
many packages were really looked up, and fails only for those that are known to be vulnerable: a machine that can't
reach the list has nothing to mend.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

_SECONDS = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Print what came of it; gives 1 if a package is known to be vulnerable."""
    (path,) = sys.argv[1:] if argv is None else argv
    command = (sys.executable, "-m", "pip_audit", "-r", path, "--disable-pip", "--format", "json")
    try:
        done = subprocess.run(
            (*command, "--progress-spinner", "off"), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        told, found = said(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        told, found = f"{path} was not audited: the list of advisories didn't answer within {_SECONDS} s", False
    print(told)  # noqa: T201 - it talks to people
    return int(found)


def said(answer: str, complaints: str) -> tuple[str, bool]:
    """What pip-audit's answer means, in words, and whether a package is known to be vulnerable."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = (complaints.strip().splitlines() or ["it said nothing"])[-1]
        return f"Dependencies were not audited: {why}", False
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    looked_up = len(packages) - len(skipped)
    lines = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in packages
        for hole in one.get("vulns", ())
    ]
    if not looked_up:
        return "Dependencies were not audited: the list of advisories can't be reached, or knows none of them", False
    told = f"{looked_up} dependencies audited, {len(lines) or 'no'} known vulnerabilities"
    if skipped:
        told += f"; not in the list: {', '.join(skipped)}"
    return "\n".join([told, *lines]), bool(lines)


if __name__ == "__main__":
    sys.exit(main())
