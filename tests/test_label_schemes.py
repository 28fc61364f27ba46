"""Label maps to nested regions and back."""

from __future__ import annotations

import numpy as np
import pytest

from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES, label_scheme

# Labels of WT, TC and ET as the data sets' own pages give them.
PUBLISHED = {
    "brats2018": ({1, 2, 4}, {1, 4}, {4}),
    "brats2023": ({1, 2, 3}, {1, 3}, {3}),
    "msd": ({1, 2, 3}, {2, 3}, {3}),
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
    np.testing.assert_array_equal(scheme.encode(scheme.decode(labels)), labels)


def test_labels_stored_as_floats_are_read_if_they_are_nearly_integers() -> None:
    scheme = label_scheme("brats2023")
    np.testing.assert_array_equal(scheme.decode(np.array([0.0, 2.9995])), scheme.decode(np.array([0, 3])))
    with pytest.raises(ValueError, match=r"must hold integers, but it holds \[1\.4"):
        scheme.decode(np.array([0.0, 1.4]))


def test_an_unknown_label_is_refused_with_the_schemes_that_fit() -> None:
    with pytest.raises(ValueError, match=r"\[4\] are not of the scheme 'brats2023'.*that fit: brats2018"):
        label_scheme("brats2023").decode(np.array([0, 1, 2, 4]))
