"""Measurements are read as they are written, and what no field can go through is refused in one line."""

import numpy as np
import pytest
from mamba_diffusion.grids import default_grid, grid_places, parse_grid, parse_numbers, read_places
from mamba_diffusion.points import check_scale, read_points

GOOD = "x,y,t [K]\n0,0,280\n4,0,281\n0,2,282\n4,2,283\n1,1,281.5\n"


def write(folder, text: str, name: str = "points.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_csv_with_a_unit(tmp_path):
    points = read_points(write(tmp_path, GOOD))
    assert (points.axes, points.channels, points.unit) == (("x", "y"), ("t",), "K")
    np.testing.assert_array_equal(points.extent, [[0, 4], [0, 2]])
    np.testing.assert_allclose(points.to_domain(points.places)[3], [1, 0.5])  # the longest side is 1
    np.testing.assert_allclose(points.to_domain(points.places, stretch=True)[3], [1, 1])


@pytest.mark.parametrize(
    ("header", "axes", "channels"),
    [
        ("lon,lat,u,v", ("lon", "lat"), ("u", "v")),
        ("x,y,z,p", ("x", "y", "z"), ("p",)),
        ("x,q", ("x",), ("q",)),
        ("X;Y;value", ("X", "Y"), ("value",)),
        ("x\ty\tvalue", ("x", "y"), ("value",)),
    ],
)
def test_headers(tmp_path, header, axes, channels):
    mark = next((m for m in ";\t" if m in header), ",")
    columns = header.count(mark) + 1
    lines = [mark.join(str((n * 7 + c * 3) % 10 + n / 10) for c in range(columns)) for n in range(6)]
    if mark == ";":  # as spreadsheets write it where decimals have commas
        lines = [line.replace(".", ",") for line in lines]
    points = read_points(write(tmp_path, "\n".join([header, *lines])))
    assert points.places[1].tolist() == [(7 + c * 3) % 10 + 0.1 for c in range(len(axes))]
    assert (points.axes, points.channels) == (axes, channels)
    assert points.values.shape == (6, len(channels))


def test_npz(tmp_path):
    coords, values = np.random.default_rng(0).random((5, 2)), np.arange(5.0)
    np.savez(tmp_path / "p.npz", coords=coords, values=values, unit="m", extent=[[0, 1], [0, 1]])
    points = read_points(tmp_path / "p.npz")
    assert (points.unit, points.values.shape) == ("m", (5, 1))
    np.testing.assert_array_equal(points.extent, [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a header and one line a sensor"),
        ("a,b,c\n1,2,3\n", "a header x"),
        ("x,y\n1,2\n", "one column a channel"),
        (GOOD + "1,2\n", "line 7 .* 3 numbers, got 2"),
        (GOOD + "1,two,3\n", "line 7 .* a number for y, got 'two'"),
        (GOOD + "2,1,nan\n", "finite numbers, got point 6: 2, 1, nan"),
        (GOOD + "1,1,290\n", "one value a place, got point 5: 1, 1, 281.5 and point 6: 1, 1, 290"),
        ("x,y,t\n0,0,1\n1,1,2\n2,0,3\n", "at least 4, got 3"),
        ("x,y,t\n0,0,1\n0,1,2\n0,2,3\n0,3,4\n", "two different ends"),
        ("x,y,a [K],b [m]\n" + "".join(f"{n},{n * n},1,2\n" for n in range(5)), "channels of one unit, got K, m"),
    ],
)
def test_bad_files(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_points(write(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_same_value_twice_at_a_place_is_no_conflict(tmp_path):
    assert len(read_points(write(tmp_path, GOOD + "1,1,281.5\n")).places) == 6


def test_points_outside_the_extent(tmp_path):
    with pytest.raises(ValueError, match=r"x 0 to 3, y 0 to 2, got point 2: 4, 0, 281 \(2 such points\)"):
        read_points(write(tmp_path, GOOD), extent=parse_numbers("0,3,0,2", "--extent"))
    with pytest.raises(ValueError, match="two numbers for each of 2 axes"):
        read_points(write(tmp_path, GOOD), extent=parse_numbers("0,3", "--extent"))


@pytest.mark.parametrize(
    ("mean", "std", "unit", "dims", "said"),
    [
        ([281.0, 0.0], [1.0, 1.0], "K", 2, "2 axes and 2 channels"),
        ([281.0], [1.0], "K", 3, "3 axes and 1 channels"),
        ([281.0], [1.0], "degC", 2, "in degC, as the training data, got K"),
        ([8.0], [1.0], "K", 2, r"near 8 \+- 1 K.*--normalise sensors"),
    ],
)
def test_points_that_do_not_fit_the_model(tmp_path, mean, std, unit, dims, said):
    points = read_points(write(tmp_path, GOOD))
    check_scale(points, np.array([281.0]), np.array([2.0]), unit="K", dims=2)
    with pytest.raises(ValueError, match=said):
        check_scale(points, np.array(mean), np.array(std), unit=unit, dims=dims)


def test_grid_over_the_extent(tmp_path):
    points = read_points(write(tmp_path, GOOD))
    places = grid_places(points, (2, 4))
    np.testing.assert_allclose(places[0], [0.5, 0.5])
    np.testing.assert_allclose(places[1], [1.5, 0.5])  # x runs fastest
    np.testing.assert_allclose(places[-1], [3.5, 1.5])
    assert default_grid(points) == (32, 64)
    assert parse_grid("64x96", 2) == (64, 96)
    for text in ("64", "ax3", "0x4", "4x4x4"):
        with pytest.raises(ValueError, match="--grid must be HxW"):
            parse_grid(text, 2)
    with pytest.raises(ValueError, match="at most 67,108,864 points"):
        parse_grid("100000x100000", 2)


def test_places_from_a_file(tmp_path):
    points = read_points(write(tmp_path, GOOD))
    np.testing.assert_allclose(read_places(write(tmp_path, "x,y\n1,1\n2,0.5\n", "at.csv"), points), [[1, 1], [2, 0.5]])
    with pytest.raises(ValueError, match="place 2"):
        read_places(write(tmp_path, "x,y\n1,1\n9,0.5\n", "at.csv"), points)
    with pytest.raises(ValueError, match="not there"):
        read_places(tmp_path / "nothing.csv", points)
    with pytest.raises(ValueError, match="is a folder"):
        read_points(tmp_path)


def test_places_are_found_by_the_names_of_their_columns(tmp_path):
    points = read_points(write(tmp_path, GOOD))
    swapped = write(tmp_path, "name_of;Y;X\n7;0,5;2\n7;1;1\n", "at.csv")
    np.testing.assert_allclose(read_places(swapped, points), [[2, 0.5], [1, 1]])
    other = write(tmp_path, "lon,lat,height\n2,0.5,7\n", "at.csv")  # sensors of an NPZ need not name their axes
    np.testing.assert_allclose(read_places(other, points), [[2, 0.5]])
    with pytest.raises(ValueError, match="no column x, y, there are lat, lon"):
        read_places(write(tmp_path, "lat,lon\n1,1\n", "at.csv"), points)
    with pytest.raises(ValueError, match="no column x, y, there are 1, 1"):  # the first line is no place to lose
        read_places(write(tmp_path, "1,1\n2,0.5\n", "at.csv"), points)
    with pytest.raises(ValueError, match="2 numbers a place"):
        read_places(write(tmp_path, "x,y\nnan,1\n", "at.csv"), points)
