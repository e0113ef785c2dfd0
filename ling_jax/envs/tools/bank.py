"""Accounts with a balance each."""

import random

from ling_jax.envs.tools.call import AMOUNT, NOUN, Call, KitState, ToolError, known, tool

NAME = "bank"
OWNERS = ("ana", "ben", "cleo", "dmitri", "eva", "farid", "gita", "hugo", "ines", "jun")


def bank_balance(state: KitState, account: str):
    return state, {"account": account, "balance": known(state, account, "account")}


def bank_deposit(state: KitState, account: str, amount: int):
    balance = known(state, account, "account") + amount
    return {**state, account: balance}, {"account": account, "balance": balance}


def bank_transfer(state: KitState, source: str, target: str, amount: int):
    available = known(state, source, "account")
    known(state, target, "account")
    if source == target:
        raise ToolError("source and target are one account; nothing to transfer")
    if amount > available:
        raise ToolError(f"{source!r} has {available}, which is less than {amount}")
    state = {**state, source: available - amount, target: state[target] + amount}
    return state, {source: state[source], target: state[target]}


TOOLS = (
    tool(bank_balance, "The balance of an account.", {"account": NOUN}, changes=False),
    tool(bank_deposit, "Puts money into an account.", {"account": NOUN, "amount": AMOUNT}, changes=True),
    tool(
        bank_transfer,
        "Moves money from one account to another.",
        {"source": NOUN, "target": NOUN, "amount": AMOUNT},
        changes=True,
    ),
)


def initial(rng: random.Random) -> KitState:
    return {owner: rng.randrange(20, 500) for owner in rng.sample(OWNERS, 4)}


def request(rng: random.Random, state: KitState, most: int) -> tuple[str, list[Call]]:
    """(a wish in words, the calls that fulfil it, at most `most`)."""
    account = rng.choice([owner for owner, balance in state.items() if balance])
    other = rng.choice([owner for owner in state if owner != account])
    kind = rng.choice(["deposit", "transfer", "empty"] if most >= 2 else ["deposit", "transfer"])
    if kind == "deposit":
        amount = rng.randrange(1, 200)
        call = {"name": "bank_deposit", "arguments": {"account": account, "amount": amount}}
        return f"Deposit {amount} into the account of {account}.", [call]
    amount = state[account] if kind == "empty" else rng.randint(1, state[account])
    transfer = {"name": "bank_transfer", "arguments": {"source": account, "target": other, "amount": amount}}
    if kind == "transfer":
        return f"Transfer {amount} from {account} to {other}.", [transfer]
    read = {"name": "bank_balance", "arguments": {"account": account}}
    return f"Transfer all the money of {account} to {other}.", [read, transfer]
