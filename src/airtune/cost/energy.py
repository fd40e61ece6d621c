"""The joules of a device in a round: computing, sending, receiving and waiting.

    E = P_compute t_compute + P_idle (t_round - t_compute)
      + (P_transmit / amplifier efficiency + P_send) t_upload + P_receive t_download

A device waits with its board on until the round ends, and the board is on while the radio works. The
server's energy is not in it.

Source: the form of the radio's part and its constants are those of S. Cui, A. J. Goldsmith and
A. Bahai, "Energy-constrained modulation optimization", IEEE Transactions on Wireless Communications
4(5), 2005; converters are left out. The idle draw is this project's estimate, see `IDLE_PART`.
"""

from __future__ import annotations

import numpy as np

from airtune.plan import Floats, Ints, Problem

AMPLIFIER_EFFICIENCY = 0.35
"""Radiated power over what the amplifier draws: the drain efficiency of the source."""
SEND_CIRCUIT_W = 0.0828
"""Beside the amplifier: mixer 30.3 mW, synthesiser 50 mW, filter 2.5 mW."""
RECEIVE_CIRCUIT_W = 0.1058
"""Low-noise amplifier 20 mW, mixer 30.3 mW, intermediate amplifier 3 mW, filter 2.5 mW, synthesiser
50 mW."""
IDLE_PART = 0.15
"""Of the power drawn while computing. A Jetson Orin Nano 8GB that was tuned to draw little was
measured at 2.2 W without load (forum of its maker, 2025), 15 % of its 15 W mode."""


def energy_j(
    problem: Problem,
    device: Ints,
    *,
    compute_s: Floats,
    upload_s: Floats,
    download_s: Floats | float = 0.0,
    round_s: Floats | float = 0.0,
) -> Floats:
    """Return the joules of a round.

    Args:
        problem: its profiles hold the powers in watt.
        device: indices of n devices of the fleet.
        compute_s: seconds of computing, shape (n,).
        upload_s: seconds of sending, shape (n,).
        download_s: seconds of receiving, shape (n,).
        round_s: seconds from the start of the round to its end; a device that is busy for longer
            waits for nobody.

    Returns:
        Joules, shape (n,); NaN where a power is hidden.
    """
    compute, transmit = problem.devices.power_w, problem.devices.transmit_power_w
    if compute is None or transmit is None:
        return np.full(device.shape, np.nan)
    board_w = compute[device]
    on_s = np.maximum(round_s, compute_s + upload_s + download_s)
    radio_w = transmit[device] / AMPLIFIER_EFFICIENCY + SEND_CIRCUIT_W
    return np.asarray(
        board_w * (compute_s + IDLE_PART * (on_s - compute_s))
        + radio_w * upload_s
        + RECEIVE_CIRCUIT_W * download_s,
        np.float64,
    )
