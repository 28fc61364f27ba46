"""Label maps to nested regions and back."""

from __future__ import annotations

import numpy as np
import pytest

from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES, detect_label_scheme, label_scheme, label_values

# Labels of WT, TC and ET as the data sets' own pages give them.
PUBLISHED = {
    "brats2018": ({1, 2, 4}, {1, 4}, {4}),
    "brats2023": ({1, 2, 3}, {1, 3}, {3}),
    "msd": ({1, 2, 3}, {2, 3}, {3}),
    "gli2024": ({1, 2, 3}, {1, 3}, {3}),
    "ped2024": ({1, 2, 3, 4}, {1, 2, 3}, {1}),
    "brats2015": ({1, 2, 3, 4}, {1, 3, 4}, {4}),
}


@pytest.mark.parametrize("name", LABEL_SCHEMES)
def test_regions_are_the_published_unions_of_labels(name: str) -> None:
    labels = np.random.default_rng(0).choice([0, *PUBLISHED[name][0]], size=(4, 5, 6))
    expected = [np.isin(labels, list(members)) for members in PUBLISHED[name]]
    np.testing.assert_array_equal(label_scheme(name).decode(labels), expected)


@pytest.mark.parametrize("name", LABEL_SCHEMES)
def test_encoding_undoes_decoding(name: str) -> None:
    labels = np.random.default_rng(0).choice([0, *PUBLISHED[name][0]], size=(4, 5, 6)).astype(np.uint8)
    scheme = label_scheme(name)
    known = np.isin(labels, [0, *scheme.written.values()])
    encoded = scheme.encode(scheme.decode(labels))
    np.testing.assert_array_equal(encoded[known], labels[known])
    np.testing.assert_array_equal(scheme.decode(encoded), scheme.decode(labels))


def test_labels_stored_as_floats_are_read_if_they_are_nearly_integers() -> None:
    scheme = label_scheme("brats2023")
    np.testing.assert_array_equal(scheme.decode(np.array([0.0, 2.9995])), scheme.decode(np.array([0, 3])))
    with pytest.raises(ValueError, match=r"must be integers, but the label map contains 1\.4"):
        scheme.decode(np.array([0.0, 1.4]))


def test_an_unknown_label_is_refused_with_the_schemes_that_fit() -> None:
    with pytest.raises(
        ValueError, match=r"label 4 is not among .* of brats2023 \(.*labels of the label map: brats2018, gli2024"
    ):
        label_scheme("brats2023").decode(np.array([0, 1, 2, 4]))


@pytest.mark.parametrize(
    ("values", "candidates", "scheme"),
    [
        ({0, 1, 2, 4}, ["brats2018"], "brats2018"),
        ({0, 1, 2, 3}, ["brats2023", "gli2024"], "brats2023"),
        ({0, 1, 2, 3, 4}, ["brats2023", "gli2024"], "gli2024"),
        ({0, 1, 2, 4}, ["ped2024", "brats2023"], "ped2024"),
        ({0, 1, 2, 4}, [], "brats2018"),
        ({0}, [], "brats2018"),
    ],
)
def test_the_scheme_is_told_by_naming_convention_then_by_values(
    values: set[int], candidates: list[str], scheme: str
) -> None:
    assert detect_label_scheme(values, candidates).name == scheme


@pytest.mark.parametrize(
    ("values", "candidates", "fitting"),
    [
        ({0, 1, 2, 3}, [], "brats2023 or msd or gli2024 or ped2024 or brats2015"),
        ({0, 1, 2, 3, 4}, [], "gli2024 or ped2024 or brats2015"),
        ({0, 1, 2, 3}, ["ped2024", "brats2023"], "ped2024 or brats2023"),
    ],
)
def test_labels_that_several_schemes_read_differently_are_refused_with_these(
    values: set[int], candidates: list[str], fitting: str
) -> None:
    with pytest.raises(ValueError, match=rf"Choose a scheme with `--label-scheme`: {fitting}\."):
        detect_label_scheme(values, candidates)


def test_a_cavity_is_no_tumour() -> None:
    assert not label_scheme("gli2024").decode(np.array([0, 4])).any()


def test_nan_is_no_label() -> None:
    with pytest.raises(ValueError, match=r"must be integers, but the label map contains nan"):
        label_values(np.array([0, np.nan, 1e30]))
