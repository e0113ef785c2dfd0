"""Tokens go to the devices of their experts along the mesh axis `expert`, and sums come back (docs §8).

A token is sent once to every device that has experts of it. What is sent are the rows that there are; only the room
for them is that of the worst case, in which a device gets the tokens of all others.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.platform import platform

AXIS = "expert"


def compiler_options(mesh) -> dict[str, bool] | None:
    """With which programs for this mesh are compiled.

    TPUs compute the shared expert, or gather weights, while tokens are on their way.
    """
    return {"xla_tpu_enable_async_ragged_all_to_all": True} if mesh.devices.flat[0].platform == "tpu" else None


class Routes(NamedTuple):
    """Of one of W devices with M tokens each: which rows it sends, S at the most, and which come, R at the most.

    Rows to be sent stand in the order of their destinations, rows that came in the order of their sources, and those of
    each begin at a whole unit.
    """

    token_of_sent: jax.Array  # [S]; M where there is none
    sent_of_token: jax.Array  # [a token's devices, M]; S where there is none
    token_of_came: jax.Array  # [R], counted over all devices' tokens; W·M where there is none
    came_of_token: jax.Array  # [W·M]; R and more where there is none
    units: jax.Array  # [W, W] that go from each device to each

    @property
    def unit(self) -> int:
        return _unit(len(self.units), *self.sent_of_token.shape)  # as `plan_routes` chose it


def plan_routes(index_WMk, experts_here: int, most: int) -> Routes:
    """The ways of tokens with these experts, `experts_here` on each device.

    index_WMk: of all devices' tokens; the number of all experts, or more, is none of them. A token goes to `most`
    devices at the most, and further ones are left out.
    """
    devices, tokens, _ = index_WMk.shape
    me, unit = jax.lax.axis_index(AXIS), _unit(devices, most, tokens)
    goes_WMW = jnp.any(index_WMk[..., None] // experts_here == jnp.arange(devices), axis=2)
    number_WMW = jnp.cumsum(goes_WMW, axis=2, dtype=jnp.int32)
    goes_WMW &= number_WMW <= most
    units_WW = -(-jnp.sum(goes_WMW, axis=1, dtype=jnp.int32) // unit)
    # All devices' last units may be as good as empty; of one device come M tokens at the most.
    room_sent = _whole(tokens * most + (unit - 1) * devices, unit)
    room_come = devices * _whole(tokens, unit)
    pair_of_sent, sent_of_pair = _placed(goes_WMW[me].T, unit * _before(units_WW, 1)[me], room_sent)
    token_of_came, came_of_token = _placed(goes_WMW[:, :, me], unit * _before(units_WW, 0)[:, me], room_come)
    chosen_SWM = jnp.arange(1, most + 1)[:, None, None] == (goes_WMW[me] * number_WMW[me]).T
    sent_WM = sent_of_pair.reshape(devices, tokens)
    return Routes(
        token_of_sent=jnp.where(pair_of_sent < devices * tokens, pair_of_sent % tokens, tokens),
        sent_of_token=jnp.min(jnp.where(chosen_SWM, sent_WM, room_sent), axis=1),
        token_of_came=token_of_came,
        came_of_token=came_of_token,
        units=units_WW,
    )


def _unit(devices: int, most: int, tokens: int) -> int:
    """Rows that are sent as one: eight lie together in a TPU's memory, and single ones would have to be laid out anew.

    Where few tokens go to many devices, units would be empty for the most part.
    """
    return 8 if tokens * most >= 8 * 8 * devices else 1


def _whole(rows: int, unit: int) -> int:
    return -(-rows // unit) * unit


def _before(size_WW, axis: int):
    return jnp.cumsum(size_WW, axis) - size_WW


def _placed(kept_WM, first_W, room: int):
    """(which of the W·M items each row holds, W·M for none; the row of each item, `room` and more for none).

    The kept items of each w stand from row `first_W` on.
    """
    items = jnp.arange(kept_WM.size, dtype=jnp.int32)
    row_WM = first_W[:, None] + jnp.cumsum(kept_WM, axis=1, dtype=jnp.int32) - 1
    row = jnp.where(kept_WM.reshape(-1), row_WM.reshape(-1), room + items)
    return jnp.full(room, kept_WM.size, jnp.int32).at[row].set(items, mode="drop", unique_indices=True), row


@jax.custom_vjp
def send(x_MD, routes: Routes):
    """[R, D]: the tokens that came to this device; what is in other rows is undefined."""
    x_SD = x_MD.at[routes.token_of_sent].get(mode="clip")
    return _exchange(x_SD, routes.units, routes.unit, len(routes.token_of_came), platform() != "cpu")


@jax.custom_vjp
def bring_back(y_RD, routes: Routes):
    """[M, D]: for each token of this device the sum, in at least float32, of what all devices have for it."""
    y_SD = _exchange(y_RD, routes.units.T, routes.unit, len(routes.token_of_sent), platform() != "cpu")
    wide = jnp.promote_types(y_RD.dtype, jnp.float32)
    return jnp.sum(_taken(y_SD, routes.sent_of_token), axis=0, dtype=wide).astype(y_RD.dtype)


@jax.custom_vjp
def weights_of_came(weight_WMk, routes: Routes):
    """[R, k]: the weights of the tokens that came to this device, and zeros in other rows."""
    return _taken(weight_WMk.reshape(-1, weight_WMk.shape[-1]), routes.token_of_came)


# `send` and `bring_back` are each the other's transpose.
send.defvjp(
    lambda x_MD, routes: (send(x_MD, routes), routes), lambda routes, grad_RD: (bring_back(grad_RD, routes), None)
)
bring_back.defvjp(
    lambda y_RD, routes: (bring_back(y_RD, routes), routes), lambda routes, grad_MD: (send(grad_MD, routes), None)
)
weights_of_came.defvjp(
    lambda weight_WMk, routes: (weights_of_came(weight_WMk, routes), routes),
    lambda routes, grad_Rk: (
        _taken(grad_Rk, routes.came_of_token).reshape(len(routes.units), -1, grad_Rk.shape[1]),
        None,
    ),
)


# Traced and lowered once for all layers, there and back.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _exchange(x_ND, units_WW, unit: int, room: int, ragged: bool):
    """[room, D]: what came in the order of the sources, of what all sent in the order of the destinations."""
    me, devices = jax.lax.axis_index(AXIS), len(units_WW)
    x_NUD = x_ND.reshape(-1, unit, x_ND.shape[1])
    empty = jax.lax.empty((room // unit, *x_NUD.shape[1:]), x_ND.dtype)
    first_sent, first_come = _before(units_WW, 1), _before(units_WW, 0)
    if ragged:
        offsets = first_sent[me], units_WW[me], first_come[me], units_WW[:, me]
        return jax.lax.ragged_all_to_all(x_NUD, empty, *offsets, axis_name=AXIS).reshape(room, -1)
    # XLA has no such exchange for CPUs: blocks as long as any can be.
    within_B = jnp.arange(max(len(x_NUD), len(empty)) // devices)
    blocks = _taken(x_NUD, first_sent[me][:, None] + within_B)
    blocks = jax.lax.all_to_all(blocks, AXIS, 0, 0)
    place_WB = jnp.where(within_B < units_WW[:, me, None], first_come[:, me, None] + within_B, len(empty))
    return empty.at[place_WB].set(blocks, mode="drop").reshape(room, -1)


def _taken(x_ND, index):
    """The rows of these numbers; zeros for numbers that are too large."""
    return x_ND.at[index].get(mode="fill", fill_value=0)
