"""The kinds of state machines that toolkits are made of, each with the domains that it is crossed with.

A kind has `OPERATIONS`, the schemas of its own `arguments(domain)`, an `initial(domain, rng, size)` state, `PHRASES` of
wishes, the `options(domain, rng, state)` of a user, the key of the operation that destroys most, and `DOMAINS`.
"""
