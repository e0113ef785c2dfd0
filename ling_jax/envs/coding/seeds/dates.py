"""Days of the Gregorian calendar as (year, month, day)."""

LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def is_leap(year):
    """Whether the year has 366 days."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def month_length(year, month):
    """Days of a month, which is from 1 to 12."""
    if not 1 <= month <= 12:
        raise ValueError("month must be from 1 to 12")
    return 29 if month == 2 and is_leap(year) else LENGTHS[month - 1]


def is_valid(year, month, day):
    """Whether there is such a day."""
    return 1 <= month <= 12 and 1 <= day <= month_length(year, month)


def day_of_year(year, month, day):
    """1 for the first of January."""
    return sum(month_length(year, earlier) for earlier in range(1, month)) + day


def to_number(year, month, day):
    """Days since the first of January of the year 1, which has the number 1."""
    if not is_valid(year, month, day):
        raise ValueError("no such day")
    before = year - 1
    leap_days = before // 4 - before // 100 + before // 400
    return 365 * before + leap_days + day_of_year(year, month, day)


def from_number(number):
    """The day with this number."""
    year = 1
    while number > (days := 366 if is_leap(year) else 365):
        number -= days
        year += 1
    month = 1
    while number > month_length(year, month):
        number -= month_length(year, month)
        month += 1
    return year, month, number


def weekday(year, month, day):
    """The name of the day of the week."""
    return WEEKDAYS[(to_number(year, month, day) - 1) % 7]


def add_days(date, count):
    """The day `count` days later, or earlier where it is negative."""
    return from_number(to_number(*date) + count)


def add_months(date, count):
    """The same day of a later month, or the last day of it where it is shorter."""
    year, month, day = date
    months = year * 12 + month - 1 + count
    year, month = months // 12, months % 12 + 1
    return year, month, min(day, month_length(year, month))


def workdays(first, last):
    """How many days from the first to the last, both counted, are not on a weekend."""
    numbers = range(to_number(*first), to_number(*last) + 1)
    return sum((number - 1) % 7 < 5 for number in numbers)
