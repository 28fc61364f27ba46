"""Draw sentences at random from the docstrings, messages and help texts of a folder, to read them as a stranger would.

python scripts/sample_sentences.py --seed 1 --number 20
"""

from __future__ import annotations

import argparse
import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[a-z0-9)`'\"][.!?])\s+(?=[A-Z`])|\n\s*\n|\n\s*-\s|\n(?=\s+\w+: )")
LEAST_WORDS = 4


def sentences(root: Path) -> Iterator[tuple[str, str]]:
    """Location and text of each sentence in the Python files below a folder. `{}` stands for an inserted value."""
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
        } - {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
        for node in ast.walk(tree):
            if id(node) in inside or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            for sentence in SENTENCE_END.split(_text_of(node)):
                text = " ".join(sentence.split())
                if len(re.findall(r"[A-Za-z]{2,}", text)) >= LEAST_WORDS and not text.startswith((">>>", "...")):
                    yield f"{path}:{node.lineno}", text


def _text_of(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def main() -> None:
    """Print the sentences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("src"), help="folder with Python files (default: src)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--number", type=int, default=20, help="number of sentences")
    args = parser.parse_args()
    found = list(sentences(args.root))
    for number, (place, text) in enumerate(random.Random(args.seed).sample(found, args.number), start=1):
        print(f"{number:2d} {place}\n   {text}")


if __name__ == "__main__":
    main()
