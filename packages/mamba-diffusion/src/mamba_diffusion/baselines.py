"""The classical ways from points to a field: nearest, linear, thin-plate splines, kriging. N sensors, M queries.

Linear interpolation takes the nearest sensor outside the sensors' hull. Kriging is Gaussian process regression with a
fitted Matern covariance (scikit-learn), and the only one with an error bar.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate
from scipy.spatial import KDTree

Interpolation = Callable[[NDArray, NDArray, NDArray], tuple[NDArray, NDArray | None]]

MOST_GLOBAL = 2_000  # sensors of one thin-plate system; beyond, the nearest hundred
MOST_KRIGING = 1_500  # sensors that a Gaussian process is fitted to
KERNELS = {1: "cubic", 2: "thin_plate_spline", 3: "linear"}


def nearest(coords: NDArray, values: NDArray, queries: NDArray) -> tuple[NDArray, None]:
    """Take the nearest sensor: coords (N, d), values (N, C), queries (M, d) give (M, C)."""
    return values[KDTree(coords).query(queries)[1]], None


def linear(coords: NDArray, values: NDArray, queries: NDArray) -> tuple[NDArray, None]:
    """Interpolate linearly in the triangles of the sensors."""
    if coords.shape[1] == 1:
        order = np.argsort(coords[:, 0])
        columns = [np.interp(queries[:, 0], coords[order, 0], v[order]) for v in values.T]
        return np.stack(columns, -1), None
    inside = interpolate.LinearNDInterpolator(coords, values)(queries)
    return np.where(np.isfinite(inside), inside, nearest(coords, values, queries)[0]), None


def rbf(coords: NDArray, values: NDArray, queries: NDArray) -> tuple[NDArray, None]:
    """Interpolate by thin-plate splines (cubic in 1-D, linear kernel in 3-D) with a plane."""
    neighbours = None if len(coords) <= MOST_GLOBAL else 100
    kernel = KERNELS[coords.shape[1]]
    spline = interpolate.RBFInterpolator(
        coords.astype(np.float64), values.astype(np.float64), kernel=kernel, neighbors=neighbours, degree=1
    )
    return spline(queries.astype(np.float64)), None


def kriging(coords: NDArray, values: NDArray, queries: NDArray) -> tuple[NDArray, NDArray]:
    """Krige with a covariance fitted by maximum likelihood: mean and standard deviation, both (M, C).

    Raises:
        ValueError: scikit-learn is not installed, or there are too many sensors.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    except ModuleNotFoundError as error:
        raise ValueError("kriging needs scikit-learn; pip install 'mamba-diffusion[baselines]'") from error
    if len(coords) > MOST_KRIGING:
        raise ValueError(f"kriging: sensors must be at most {MOST_KRIGING}, got {len(coords)}; take rbf")
    means, stds = [], []
    for channel in values.T:
        scale = float(channel.std()) or 1.0
        kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(0.3, (1e-2, 1e1), nu=1.5) + WhiteKernel(1e-3, (1e-6, 1e0))
        process = GaussianProcessRegressor(kernel, alpha=1e-8, n_restarts_optimizer=0)
        with warnings.catch_warnings():  # a length at its bound is as good an answer
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(coords, (channel - channel.mean()) / scale)
        mean, std = (np.asarray(x) for x in process.predict(queries, return_std=True))
        means.append(mean * scale + channel.mean())
        stds.append(std * scale)
    return np.stack(means, -1), np.stack(stds, -1)


BASELINES: dict[str, Interpolation] = {"nearest": nearest, "linear": linear, "rbf": rbf, "kriging": kriging}
