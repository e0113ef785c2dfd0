"""Other names for what seed modules and their tests speak of, so that tasks from one seed differ.

Each group is a name as it stands in the seed and what it may become; words of tests keep their order in the alphabet.
"""

import functools
import random
import re
from collections.abc import Mapping

PACKAGES = (
    "acme", "atlas", "basalt", "beacon", "cedar", "cobalt", "delta", "ember", "fjord", "granite", "harbour", "indigo",
    "juniper", "kestrel", "lagoon", "maple", "nectar", "onyx", "pepper", "quartz", "raven", "saffron", "tundra",
    "velvet",
)  # fmt: skip
MODULES = {  # what the file of a seed may be called
    "cache": "cache memory_store recent",
    "dates": "dates calendar_days almanac",
    "formulas": "formulas expressions arithmetic",
    "intervals": "intervals spans segments",
    "inventory": "inventory warehouse goods",
    "ledger": "ledger accounts bookings",
    "machine": "machine states automaton",
    "matrices": "matrices grids linear",
    "numerals": "numerals notation spelling",
    "polynomials": "polynomials polys algebra",
    "prefixes": "prefixes completion lexicon",
    "routes": "routes roadmap network",
    "schedule": "schedule planner jobs",
    "settings": "settings options preferences",
    "tables": "tables records rowsets",
    "wrapping": "wrapping layout typeset",
}
NAMES = {
    "cache": """Cache Store Keeper, lifetime ttl max_age, capacity max_items places, purge expire sweep,
        get_or_make fetch get_or_build, refresh renew touch, page menu text, logo icon link, misses absent
        faults""",
    "dates": """is_leap leap_year has_leap_day, month_length days_in_month length_of_month, day_of_year yearday
        ordinal_day, to_number day_number serial, from_number number_to_day from_serial, add_days
        shift_days days_after, add_months shift_months months_after, workdays business_days office_days,
        is_valid exists is_date""",
    "formulas": """FormulaError ParseError SyntaxProblem, tokenize split_tokens scan, free_names variables unknowns,
        evaluate compute calculate, rate price wage, hours count days, bonus extra tip, OPERATORS LEVELS
        PRECEDENCE""",
    "intervals": """IntervalSet Spans Ranges, first_free first_gap earliest_fit, gaps holes missing, intersection
        common shared, pairs parts pieces, spans busy taken, low begin left, high end right""",
    "inventory": """Inventory Warehouse Depot, OutOfStock NotEnough Shortage, reorder_level minimum order_below,
        receive take_in store, to_order running_low shortages, reserved held promised, article item
        product, bolt axle clip, lamp hook jack, wire tube vase""",
    "ledger": """Ledger Journal Register, Overdrawn LimitReached NoFunds, statement history listing, reverse cancel
        undo, largest biggest top, cash bank till, rent fuel wage, entries records moves, limits
        allowances floors""",
    "machine": """Machine Automaton Workflow, Refused NotAllowed Rejected, undo rewind step_back, reachable closure
        accessible, dead_ends traps sinks, moves edges transitions, door gate lid, lamp bulb torch, gold
        ruby jade, clay wood sand""",
    "matrices": """identity unit_matrix eye, multiply matmul mat_product, determinant det volume, minor submatrix
        cut_out, transpose flipped swap_axes, is_symmetric symmetric mirrors, rotate turn spin, power
        matrix_power raised, scale scaled stretch""",
    "numerals": """to_roman as_roman roman, from_roman parse_roman read_roman, to_base in_base digits_of, from_base
        parse_base read_base, in_words spell say, ROMAN LETTERS SYMBOLS, DIGITS ALPHABET FIGURES""",
    "polynomials": """trimmed stripped normal, degree order top_power, multiply poly_product multiplied, evaluate
        value_at apply, derivative slope_of diff, divide quotient_of split, compose insert_into after,
        show as_text render""",
    "prefixes": """Words Lexicon Vocabulary, starting_with with_prefix matches, suggest complete propose,
        longest_common shared_prefix common_prefix, nodes letter_count tree_size, remove forget drop""",
    "routes": """Map Network Atlas, distances lengths_from reach, path way_to best_way, hops steps_to jumps, groups
        parts components, tour_length round_trip loop_length, farm barn dale, mill lake mine, port pier
        quay, rock tarn weir""",
    "schedule": """Plan Project Timeline, Cycle Deadlock Circle, needs requires waits_for, ranks weights priorities,
        slack spare float_time, critical bottleneck longest_chain, on_workers assign distribute, finish
        total_time makespan""",
    "settings": """SettingsError BadLine ConfigError, strip_comment without_comment cut_comment, parse_value
        read_value value_of, render_value write_value text_of, render write dump, merge override combine,
        server host_options network, port listen slot""",
    "tables": """order_by sort_by ranked, group_by grouped buckets, summary totals overview, distinct unique
        first_of_each, where select matching, team club squad, points score goals, cells fields_of columns""",
    "wrapping": """wrap break_lines fold, justify spread fill, paragraph block layout, shorten truncate clip, border
        rim edge_mark, gaps spaces joints, fox cat owl, nobody nothing someone""",
}
WORD = re.compile(r"\\.|[A-Za-z_]\w*")  # the n of an escaped \n is no letter of the next word
Renames = Mapping[str, str]


@functools.cache
def groups(seed: str) -> tuple[tuple[str, ...], ...]:
    """The groups of names of a seed; the first of a group is the seed's own."""
    return tuple(tuple(group.split()) for group in NAMES[seed].split(","))


def draw_renames(rng: random.Random, seed: str) -> dict[str, str]:
    """A choice from each group of names."""
    return {group[0]: rng.choice(group) for group in groups(seed)}


def renamed(text: str, renames: Renames) -> str:
    """The text with whole words replaced, all at once."""
    return WORD.sub(lambda word: renames.get(word[0], word[0]), text)
