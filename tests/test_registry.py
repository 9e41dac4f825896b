import pytest

from vivit.registry import Registry


def test_names_are_unique_and_unknown_ones_list_the_known():
    shapes = Registry("shape")
    shapes.register("square")(4)
    with pytest.raises(ValueError, match="shape 'square' is registered already"):
        shapes.add("square", 5)
    with pytest.raises(ValueError, match="unknown shape 'sqare'; known: square"):
        shapes["sqare"]
    with pytest.raises(ValueError, match=r"shape 'square' takes no options, but got 'square\(2\)'"):
        shapes["square(2)"]
    assert shapes["square"] == 4
    assert list(shapes) == ["square"]
    assert "square" in shapes
    assert len(shapes) == 1
