"""Words in a tree of their letters."""


class Words:
    """Words with counts, found by how they begin."""

    def __init__(self, words=()):
        self.root = {}
        self.size = 0
        for word in words:
            self.add(word)

    def add(self, word, count=1):
        """Counts a word so many times more."""
        if not word or count < 1:
            raise ValueError("expected a word and a positive count")
        node = self.root
        for letter in word:
            node = node.setdefault(letter, {})
        if "" not in node:
            self.size += 1
        node[""] = node.get("", 0) + count

    def _node(self, prefix):
        node = self.root
        for letter in prefix:
            if letter not in node:
                return None
            node = node[letter]
        return node

    def count(self, word):
        """How often a word was counted."""
        node = self._node(word)
        return node.get("", 0) if node else 0

    def starting_with(self, prefix):
        """(word, count) of all words that begin so, sorted by word."""
        found = []

        def walk(node, word):
            for letter in sorted(node):
                if letter == "":
                    found.append((word, node[""]))
                else:
                    walk(node[letter], word + letter)

        node = self._node(prefix)
        if node is not None:
            walk(node, prefix)
        return found

    def suggest(self, prefix, most=3):
        """The most frequent words that begin so; of equal ones the first by name."""
        ranked = sorted(self.starting_with(prefix), key=lambda pair: (-pair[1], pair[0]))
        return [word for word, _ in ranked[:most]]

    def remove(self, word):
        """Forgets a word, and the letters that nothing else needs; whether it was there."""
        path, node = [], self.root
        for letter in word:
            if letter not in node:
                return False
            path.append((node, letter))
            node = node[letter]
        if "" not in node:
            return False
        del node[""]
        self.size -= 1
        for parent, letter in reversed(path):
            if parent[letter]:
                break
            del parent[letter]
        return True

    def longest_common(self):
        """The longest beginning that all words share."""
        prefix, node = "", self.root
        while len(node) == 1 and "" not in node:
            (letter,) = node
            prefix += letter
            node = node[letter]
        return prefix

    def nodes(self):
        """How many letters the tree holds."""

        def below(node):
            return sum(1 + below(child) for letter, child in node.items() if letter != "")

        return below(self.root)
