"""Steps of functions that take an algorithm: recursion, parsing, dynamic programming."""

from ling_jax.envs.coding.pieces import Piece

ALGORITHMS = (
    Piece("nested", "int", "sum all numbers in the nested lists, each times how deep it lies, 1 on the outside", """
        def total(items, depth):
            return sum(total(i, depth + 1) if isinstance(i, list) else i * depth for i in items)
        x = total(x, 1)"""),
    Piece("nested", "ints", "flatten the nested lists", """
        def flat(items):
            return [n for i in items for n in (flat(i) if isinstance(i, list) else [i])]
        x = flat(x)"""),
    Piece("nested", "int", "take the depth of the nested lists, 1 for a list without lists", """
        def depth(items):
            return 1 + max((depth(i) for i in items if isinstance(i, list)), default=0)
        x = depth(x)"""),
    Piece("sum", "int", "evaluate the formula strictly from left to right, without precedence", """
        number, total, sign = 0, 0, '+'
        for c in x + '+':
            if c.isdigit():
                number = number * 10 + int(c)
                continue
            total = total + number if sign == '+' else total - number if sign == '-' else total * number
            number, sign = 0, c
        x = total"""),
    Piece("sum", "int", "evaluate the formula, where + and - bind closer than *", """
        product = 1
        for part in x.split('*'):
            total, number, sign = 0, 0, 1
            for c in part + '+':
                if c.isdigit():
                    number = number * 10 + int(c)
                else:
                    total, number, sign = total + sign * number, 0, 1 if c == '+' else -1
            product *= total
        x = product"""),
    Piece("runs", "text", "write out the runs: each letter as often as the number behind it says", """
        text, i = '', 0
        while i < len(x):
            j = i + 1
            while j < len(x) and x[j].isdigit():
                j += 1
            text += x[i] * int(x[i + 1:j])
            i = j
        x = text"""),
    Piece("text", "text", "replace each run of equal characters by the character and its length", """
        text, i = '', 0
        while i < len(x):
            j = i
            while j < len(x) and x[j] == x[i]:
                j += 1
            text += x[i] + str(j - i)
            i = j
        x = text"""),
    Piece("brackets", "int", "take the deepest nesting of the brackets () and [], -1 if they do not match", """
        stack, deepest = [], 0
        for c in x:
            if c in '([':
                stack.append(c)
                deepest = max(deepest, len(stack))
            elif not stack or stack.pop() + c not in ('()', '[]'):
                deepest = -1
                break
        x = -1 if stack and deepest >= 0 else deepest"""),
    Piece("settings", "counts", "read the pairs key=number, where the numbers of equal keys add up", """
        found = {}
        for pair in x.split(';'):
            if pair:
                key, number = pair.split('=')
                found[key] = found.get(key, 0) + int(number)
        x = found"""),
    Piece("ints", "int", "take the length of the longest strictly rising selection in their order", """
        best = []
        for i, n in enumerate(x):
            best.append(1 + max((best[j] for j in range(i) if x[j] < n), default=0))
        x = max(best, default=0)"""),
    Piece("ints", "int", "take the largest sum of numbers of which no two are neighbours, 0 for none", """
        with_last, without = 0, 0
        for n in x:
            with_last, without = without + n, max(with_last, without)
        x = max(with_last, without, 0)"""),
    Piece("ints", "int", "take the largest sum of consecutive numbers, 0 for none", """
        best = here = 0
        for n in x:
            here = max(0, here + n)
            best = max(best, here)
        x = best"""),
    Piece("ints", "int", "count the pairs in which an earlier number is larger than a later one", """
        x = sum(a > b for i, a in enumerate(x) for b in x[i + 1:])"""),
    Piece("coins", "int", "count the ways to pay {a} with coins of these values, each as often as needed", """
        ways = [1] + [0] * {a}
        for coin in x:
            for total in range(coin, {a} + 1):
                ways[total] += ways[total - coin]
        x = ways[{a}]""", (10, 30)),
    Piece("coins", "int", "take the least number of coins of these values that pay {a}, -1 if none do", """
        least = [0] + [None] * {a}
        for total in range(1, {a} + 1):
            known = [least[total - c] for c in x if c <= total and least[total - c] is not None]
            least[total] = min(known) + 1 if known else None
        x = -1 if least[{a}] is None else least[{a}]""", (11, 35)),
    Piece("text", "int", "take the length of its longest common subsequence with itself turned around", """
        y, row = x[::-1], [0] * (len(x) + 1)
        for a in x:
            new = [0]
            for j, b in enumerate(y):
                new.append(row[j] + 1 if a == b else max(row[j + 1], new[j]))
            row = new
        x = row[-1]"""),
    Piece("int", "ints", "take the prime factors of its absolute value in rising order, none for 0 and 1", """
        n, factors, p = abs(x), [], 2
        while n > 1:
            while n % p == 0:
                factors.append(p)
                n //= p
            p += 1
        x = factors"""),
    Piece("int", "ints", "take the digits of its absolute value in base {a}, the highest first, [0] for 0", """
        n, digits = abs(x), []
        while n or not digits:
            digits.insert(0, n % {a})
            n //= {a}
        x = digits""", (2, 7)),
    Piece("int", "int",
          "take number x % 12 of the sequence 0, 1, ...: each is {a} times the last plus {b} times the one before", """
        last, before = 0, 1
        if x % 12:
            last, before = 1, 0
        for _ in range(x % 12 - 1):
            last, before = {a} * last + {b} * before, last
        x = last""", (1, 3), (1, 3)),
)  # fmt: skip
