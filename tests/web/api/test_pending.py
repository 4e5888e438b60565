"""How open orders are written: the stored text, under the names that older tills read too."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.protocol import jsontext
from posd.store.orders import Open
from posd.web.api import pending


class WrittenTests(SynchronousTestCase):
    def written(self, snapshot: str, order_id: str = "A-1") -> str:
        return pending._written(Open(order_id, snapshot, "sent_to_pos")).decode()

    def test_the_text_goes_out_as_it_was_stored(self) -> None:
        stored = (
            '{"orderId":"A-1", "totalAmount":12.50,"items":[{"id":7,"price":0.10}],"tip":1.000}'
        )
        self.assertEqual(
            self.written(stored),
            stored[:-1] + ',"id":"A-1","total":12.50,"printStatus":"sent_to_pos"}',
        )

    def test_a_text_with_spaces_around_it_is_still_one_object(self) -> None:
        written = self.written('  {"orderId": "A-1", "totalAmount": 5}\n')
        self.assertEqual(jsontext.decode(written), jsontext.decode(self.written(written)))

    def test_an_order_of_a_strange_id_is_still_json(self) -> None:
        order_id = 'é"\\\n'
        value = jsontext.decode(self.written('{"totalAmount":5}', order_id))
        assert isinstance(value, dict)
        self.assertEqual(value["id"], order_id)

    def test_no_name_is_there_twice(self) -> None:
        for member in ('"id":7', '"\\u0069d":7', '"total":null', '"printStatus":"x"'):
            for stored in (f'{{{member},"totalAmount":5.0}}', f'{{"totalAmount":5.0,{member}}}'):
                written = self.written(stored)
                self.assertEqual(written.count('"id"'), 1)
                self.assertEqual(written.count('"total"'), 1)
                self.assertEqual(written.count('"printStatus"'), 1)
                self.assertIn('"id":"A-1"', written)
                self.assertIn('"total":5.0', written)
                self.assertIn('"printStatus":"sent_to_pos"', written)

    def test_an_order_without_an_amount_has_no_total(self) -> None:
        for stored in ("{}", '{"orderId":"A-1"}'):
            value = jsontext.decode(self.written(stored))
            assert isinstance(value, dict)
            self.assertEqual((value["id"], "total" in value), ("A-1", False))
