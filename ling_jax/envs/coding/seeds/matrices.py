"""Matrices of whole numbers as lists of rows."""


def shape(matrix):
    """(rows, columns); all rows have to be equally long."""
    columns = len(matrix[0]) if matrix else 0
    if any(len(row) != columns for row in matrix):
        raise ValueError("rows differ in length")
    return len(matrix), columns


def identity(size):
    """Ones on the diagonal."""
    return [[1 if i == j else 0 for j in range(size)] for i in range(size)]


def add(a, b):
    """The sum, element by element."""
    if shape(a) != shape(b):
        raise ValueError("shapes differ")
    return [[x + y for x, y in zip(left, right, strict=True)] for left, right in zip(a, b, strict=True)]


def scale(matrix, factor):
    """All elements times the factor."""
    return [[factor * x for x in row] for row in matrix]


def transpose(matrix):
    """Rows become columns."""
    rows, columns = shape(matrix)
    return [[matrix[i][j] for i in range(rows)] for j in range(columns)]


def multiply(a, b):
    """The product of matrices."""
    rows, inner = shape(a)
    other, columns = shape(b)
    if inner != other:
        raise ValueError("shapes do not fit")
    return [[sum(a[i][k] * b[k][j] for k in range(inner)) for j in range(columns)] for i in range(rows)]


def power(matrix, exponent):
    """The product of `exponent` equal matrices, in few steps."""
    if exponent < 0:
        raise ValueError("exponent must not be negative")
    result = identity(shape(matrix)[0])
    while exponent:
        if exponent % 2 == 1:
            result = multiply(result, matrix)
        matrix = multiply(matrix, matrix)
        exponent //= 2
    return result


def minor(matrix, row, column):
    """The matrix without a row and a column."""
    return [line[:column] + line[column + 1 :] for i, line in enumerate(matrix) if i != row]


def determinant(matrix):
    """By the first row; that of an empty matrix is 1."""
    rows, columns = shape(matrix)
    if rows != columns:
        raise ValueError("not square")
    if rows == 0:
        return 1
    return sum((-1) ** j * matrix[0][j] * determinant(minor(matrix, 0, j)) for j in range(columns))


def trace(matrix):
    """The sum of the diagonal."""
    return sum(matrix[i][i] for i in range(min(shape(matrix))))


def is_symmetric(matrix):
    """Whether it is its own transpose."""
    return matrix == transpose(matrix)


def rotate(matrix, turns=1):
    """Turned by a right angle to the right, `turns` times."""
    for _ in range(turns % 4):
        matrix = transpose(matrix[::-1])
    return matrix
