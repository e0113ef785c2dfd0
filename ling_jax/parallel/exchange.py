"""The token exchange along the mesh axis `expert`: tokens to the devices of their experts, sums back
(docs/architecture.md §8).

A device gets each token once, however many of its experts the token chose. Only existing rows are sent; the buffers are
sized for the worst case, in which one device receives the tokens of all others.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.platform import platform

AXIS = "expert"


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool] | None:
    """XLA options for programs on this mesh; None for the defaults.

    They let a TPU compute the shared expert or gather weights during the token exchange.
    """
    return {"xla_tpu_enable_async_ragged_all_to_all": True} if mesh.devices.flat[0].platform == "tpu" else None


class Routes(NamedTuple):
    """The rows that one of W devices with M tokens sends (at most S) and receives (at most R).

    Sent rows are ordered by destination, received rows by source. The rows of each destination or source begin at a
    multiple of `unit`.
    """

    token_of_sent: jax.Array  # [S] int32; M for unused rows
    sent_of_token: jax.Array  # [max_devices, M] int32; S where a token goes to fewer devices
    token_of_received: jax.Array  # [R] int32, numbered over all devices; W·M for unused rows
    received_of_token: jax.Array  # [W·M] int32; R or more for tokens that do not come here
    units: jax.Array  # [W, W] int32 units from each device to each

    @property
    def unit(self) -> int:
        """Rows in a unit, as `plan_routes` chose it."""
        return _unit(len(self.units), *self.sent_of_token.shape)


def plan_routes(index_WMk: jax.Array, experts_here: int, max_devices: int) -> Routes:
    """The routes of all devices' tokens to the devices of their experts, which hold `experts_here` experts each.

    index_WMk holds the experts of all devices' tokens; the number of experts or more means none. A token goes to at
    most `max_devices` devices; further ones are left out.
    """
    devices, tokens, _ = index_WMk.shape
    me, unit = jax.lax.axis_index(AXIS), _unit(devices, max_devices, tokens)
    goes_WMW = jnp.any(index_WMk[..., None] // experts_here == jnp.arange(devices), axis=2)
    number_WMW = jnp.cumsum(goes_WMW, axis=2, dtype=jnp.int32)
    goes_WMW &= number_WMW <= max_devices
    units_WW = -(-jnp.sum(goes_WMW, axis=1, dtype=jnp.int32) // unit)
    # The last unit for each device may be nearly empty. One source sends at most M tokens.
    max_sent = _whole(tokens * max_devices + (unit - 1) * devices, unit)
    max_received = devices * _whole(tokens, unit)
    pair_of_sent, sent_of_pair = _placed(goes_WMW[me].T, unit * _before(units_WW, 1)[me], max_sent)
    token_of_received, received_of_token = _placed(goes_WMW[:, :, me], unit * _before(units_WW, 0)[:, me], max_received)
    chosen_SWM = jnp.arange(1, max_devices + 1)[:, None, None] == (goes_WMW[me] * number_WMW[me]).T
    sent_WM = sent_of_pair.reshape(devices, tokens)
    return Routes(
        token_of_sent=jnp.where(pair_of_sent < devices * tokens, pair_of_sent % tokens, tokens),
        sent_of_token=jnp.min(jnp.where(chosen_SWM, sent_WM, max_sent), axis=1),
        token_of_received=token_of_received,
        received_of_token=received_of_token,
        units=units_WW,
    )


def _unit(devices: int, max_devices: int, tokens: int) -> int:
    """Rows in a unit of the exchange. A TPU stores eight rows together, so that units of eight need no new layout.

    If few tokens go to many devices, most units of eight would be empty, so units have one row.
    """
    return 8 if tokens * max_devices >= 8 * 8 * devices else 1


def _whole(rows: int, unit: int) -> int:
    return -(-rows // unit) * unit


def _before(size_WW, axis: int):
    return jnp.cumsum(size_WW, axis) - size_WW


def _placed(kept_WM, first_W, rows: int):
    """(the item of each of `rows` rows, W·M for unused rows; the row of each item, `rows` or more for dropped items).

    The kept items of each w occupy the rows from `first_W[w]` on.
    """
    items = jnp.arange(kept_WM.size, dtype=jnp.int32)
    row_WM = first_W[:, None] + jnp.cumsum(kept_WM, axis=1, dtype=jnp.int32) - 1
    row = jnp.where(kept_WM.reshape(-1), row_WM.reshape(-1), rows + items)
    return jnp.full(rows, kept_WM.size, jnp.int32).at[row].set(items, mode="drop", unique_indices=True), row


@jax.custom_vjp
def send(x_MD: jax.Array, routes: Routes) -> jax.Array:
    """The tokens that this device receives, [R, D], from its own [M, D]; unused rows are undefined."""
    x_SD = x_MD.at[routes.token_of_sent].get(mode="clip")
    return _exchange(x_SD, routes.units, routes.unit, len(routes.token_of_received), platform() != "cpu")


@jax.custom_vjp
def combine(y_RD: jax.Array, routes: Routes) -> jax.Array:
    """For each token of this device, the sum over the devices that received it: [M, D] from their rows [R, D].

    Sums are in at least float32. `combine` is the transpose of `send`.
    """
    y_SD = _exchange(y_RD, routes.units.T, routes.unit, len(routes.token_of_sent), platform() != "cpu")
    wide = jnp.promote_types(y_RD.dtype, jnp.float32)
    return jnp.sum(_taken(y_SD, routes.sent_of_token), axis=0, dtype=wide).astype(y_RD.dtype)


@jax.custom_vjp
def received_weights(weight_WMk: jax.Array, routes: Routes) -> jax.Array:
    """The router weights of the received tokens, [R, k]; zeros in unused rows. Weights are of all devices' tokens."""
    return _taken(weight_WMk.reshape(-1, weight_WMk.shape[-1]), routes.token_of_received)


# `send` and `combine` are each the other's transpose.
send.defvjp(lambda x_MD, routes: (send(x_MD, routes), routes), lambda routes, grad_RD: (combine(grad_RD, routes), None))
combine.defvjp(
    lambda y_RD, routes: (combine(y_RD, routes), routes), lambda routes, grad_MD: (send(grad_MD, routes), None)
)
received_weights.defvjp(
    lambda weight_WMk, routes: (received_weights(weight_WMk, routes), routes),
    lambda routes, grad_Rk: (
        _taken(grad_Rk, routes.received_of_token).reshape(len(routes.units), -1, grad_Rk.shape[1]),
        None,
    ),
)


# A jit of its own: traced and lowered once for all layers and both directions.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _exchange(x_ND, units_WW, unit: int, rows: int, ragged: bool):
    """The received rows [rows, D], ordered by source; `x_ND` are the sent rows, ordered by destination."""
    me, devices = jax.lax.axis_index(AXIS), len(units_WW)
    x_NUD = x_ND.reshape(-1, unit, x_ND.shape[1])
    empty = jax.lax.empty((rows // unit, *x_NUD.shape[1:]), x_ND.dtype)
    first_sent, first_received = _before(units_WW, 1), _before(units_WW, 0)
    if ragged:
        offsets = first_sent[me], units_WW[me], first_received[me], units_WW[:, me]
        return jax.lax.ragged_all_to_all(x_NUD, empty, *offsets, axis_name=AXIS).reshape(rows, -1)
    # XLA has no ragged exchange on CPUs: exchange blocks of the largest size.
    within_B = jnp.arange(max(len(x_NUD), len(empty)) // devices)
    blocks = _taken(x_NUD, first_sent[me][:, None] + within_B)
    blocks = jax.lax.all_to_all(blocks, AXIS, 0, 0)
    place_WB = jnp.where(within_B < units_WW[:, me, None], first_received[:, me, None] + within_B, len(empty))
    return empty.at[place_WB].set(blocks, mode="drop").reshape(rows, -1)


def _taken(x_ND, index):
    """x_ND[index]; zeros for indices past the end."""
    return x_ND.at[index].get(mode="fill", fill_value=0)
