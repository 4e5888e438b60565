"""Tests of amounts: the decimals of currencies, valid amounts, and the round trip through JSON and SQL."""

from __future__ import annotations

from decimal import Decimal

import psycopg2
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events import money
from posd.protocol import jsontext
from posd.testing.postgres import test_server

CURRENCIES = st.sampled_from(["GBP", "JPY", "KWD"])


@st.composite
def amounts(draw: st.DrawFn) -> tuple[Decimal, str]:
    """Return an amount in the decimals of its currency, with trailing zeros or without."""
    currency = draw(CURRENCIES)
    most = 10 ** (11 + money.decimals(currency)) - 1
    units = draw(st.integers(min_value=-most, max_value=most))
    number = Decimal(units).scaleb(-money.decimals(currency))
    zeros = draw(st.integers(min_value=0, max_value=3))
    return Decimal(f"{number:f}{'' if '.' in f'{number:f}' else '.'}{'0' * zeros}"), currency


class DecimalsTests(SynchronousTestCase):
    def test_the_decimals_are_those_of_iso_4217(self) -> None:
        for currency, decimals in (("GBP", 2), ("JPY", 0), ("KWD", 3), ("ISK", 0), ("EUR", 2)):
            self.assertEqual(money.decimals(currency), decimals, currency)

    def test_a_code_without_decimals_is_no_currency(self) -> None:
        for code, is_one in (("GBP", True), ("JPY", True), ("KWD", True), ("XXQ", False)):
            self.assertIs(money.is_currency(code), is_one, code)
        for code in ("XAU", "XTS", "gbp", ""):
            self.assertFalse(money.is_currency(code), code)

    def test_unknown_currencies_have_two_decimals_and_others_three_at_most(self) -> None:
        self.assertEqual(money.decimals("CLF"), 3)
        self.assertEqual(money.decimals("XAU"), 2)
        self.assertEqual(money.decimals("QQQ"), 2)


class ParseTests(SynchronousTestCase):
    def test_trailing_zeros_are_ignored(self) -> None:
        for written, currency, read in (
            ("12.3400", "GBP", "12.34"),
            ("12", "GBP", "12.00"),
            ("500.000", "JPY", "500"),
            ("0.125", "KWD", "0.125"),
            ("-3.5", "GBP", "-3.50"),
        ):
            with self.subTest(written=written):
                value = jsontext.decode(written)
                self.assertEqual(str(money.parse(value, currency, "amount")), read)

    def test_an_invalid_amount_is_refused_with_its_field(self) -> None:
        in_pounds: list[object] = [
            *(True, False, None, "5", 5.0, [], {}, 10**11, -(10**11), 10**400),
            *map(Decimal, ("NaN", "sNaN", "Infinity", "1E+300", "1E-300", "0.001")),
        ]
        for value, currency in (
            *((value, "GBP") for value in in_pounds),
            (Decimal("0.5"), "JPY"),
            (Decimal("0.0005"), "KWD"),
        ):
            with self.subTest(value=value):
                error = self.assertRaises(Unprocessable, money.parse, value, currency, "netSales")
                self.assertEqual(error.code, "invalid_amount")
                self.assertEqual(error.details, {"field": "netSales"})

    def test_a_movement_is_greater_than_zero(self) -> None:
        self.assertEqual(money.parse_positive(Decimal("0.01"), "GBP", "amount"), Decimal("0.01"))
        for value in (0, -1, Decimal("-0.00"), Decimal("0.000")):
            with self.subTest(value=value):
                self.assertRaises(Unprocessable, money.parse_positive, value, "GBP", "amount")


class PresentTests(SynchronousTestCase):
    def test_an_amount_gets_the_decimals_of_its_currency(self) -> None:
        for stored, currency, shown in (
            ("12.500", "GBP", "12.50"),
            ("500.000", "JPY", "500"),
            ("1.125", "KWD", "1.125"),
            ("1.125", "GBP", "1.13"),
            ("-1.125", "GBP", "-1.13"),
        ):
            with self.subTest(stored=stored, currency=currency):
                self.assertEqual(str(money.quantized(Decimal(stored), currency)), shown)

    def test_nan_and_infinity_are_refused(self) -> None:
        for number in (Decimal("NaN"), Decimal("Infinity")):
            self.assertRaises(ValueError, jsontext.encode, number)


class RoundTripTests(SynchronousTestCase):
    def test_no_amount_is_changed_by_json_python_or_sql(self) -> None:
        server = test_server()
        dsn = server.fresh_database(None)
        self.addCleanup(server.drop_database, dsn)
        connection = psycopg2.connect(dsn)
        self.addCleanup(connection.close)
        cursor = connection.cursor()

        @given(amounts())
        def goes_round(amount: tuple[Decimal, str]) -> None:
            written, currency = amount
            read = money.parse(jsontext.decode(jsontext.encode(written)), currency, "amount")
            self.assertEqual(read, written)
            cursor.execute("SELECT %s::numeric(14, 3)", (read,))
            ((stored,),) = cursor.fetchall()
            shown = jsontext.encode(money.quantized(stored, currency))
            self.assertEqual(shown, jsontext.encode(read))
            self.assertEqual(money.parse(jsontext.decode(shown), currency, "amount"), written)

        goes_round()
