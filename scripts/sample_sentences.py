"""Draw sentences at random from the docstrings, messages and help texts of a folder, to read them as a stranger would.

python scripts/sample_sentences.py --seed 1 --number 20
"""

from __future__ import annotations

import argparse
import ast
import inspect
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARAGRAPH_END = re.compile(r"\n\s*\n|\n\s*-\s|\n(?=\s+\w+: )")
SENTENCE_END = re.compile(r"(?<=[a-z0-9)}`'\"][.!?])\s+(?=[A-Z`])")
LEAST_WORDS = 4
# Doctests, regular expressions, HTML and single words are no sentences.
CODE = re.compile(r"^(?:\S+$|>>>|Example: |\.\.\.)|\(\?:|</?[a-z]+[ >]")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Sentence:
    """A sentence, and what a reader of the file sees around it.

    Attributes:
        place: File, line, and the function or class, such as `src/files.py:12 replacing`.
        heading: First line of the docstring in which the sentence stands. It is empty outside docstrings.
        paragraph: Paragraph, entry of a list, or message in which the sentence stands.
        text: The sentence. `{}` stands for an inserted value.
    """

    place: str
    heading: str
    paragraph: str
    text: str


def sentences(root: Path) -> Iterator[Sentence]:
    """Sentences of the Python files below a folder."""
    for path in sorted(root.rglob("*.py")):
        yield from _of_definition(ast.parse(path.read_text()), str(path), "")


def _of_definition(definition: ast.AST, path: str, name: str) -> Iterator[Sentence]:
    """Sentences of a module, class or function, then those of the definitions in it."""
    docstring = ast.get_docstring(definition) if isinstance(definition, DEFINITIONS) else None
    for node in _own_nodes(definition):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_definition(node, path, f"{name}.{node.name}" if name else node.name)
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            text = _text_of(node)
            heading = docstring.splitlines()[0] if docstring and inspect.cleandoc(text) == docstring else ""
            for part in PARAGRAPH_END.split(text):
                paragraph = " ".join(part.split())
                for sentence in SENTENCE_END.split(paragraph):
                    if len(re.findall(r"[A-Za-z]{2,}", sentence)) >= LEAST_WORDS and not CODE.search(sentence):
                        yield Sentence(f"{path}:{node.lineno} {name}".strip(), heading, paragraph, sentence)


def _own_nodes(definition: ast.AST) -> Iterator[ast.AST]:
    """Nodes below a definition, without what is inside another definition or a formatted string."""
    for node in ast.iter_child_nodes(definition):
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.JoinedStr):
            yield from _own_nodes(node)


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
    parser.add_argument("--all", action="store_true", help="print all sentences in the order of the files")
    args = parser.parse_args()
    found = list(sentences(args.root))
    drawn = found if args.all else random.Random(args.seed).sample(found, args.number)
    for number, sentence in enumerate(drawn, start=1):
        around = dict.fromkeys([sentence.heading, sentence.paragraph])
        shown = [f"[{text}]" for text in around if text and text != sentence.text]
        print("\n   ".join([f"{number:2d} {sentence.place}", *shown, sentence.text]))


if __name__ == "__main__":
    main()
