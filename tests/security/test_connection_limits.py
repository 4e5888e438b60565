"""Tests of the limits of open connections: in total, per tenant, per device."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import TooManyRequests, Unavailable
from posd.security.connection_limits import ConnectionLease, ConnectionLimits

Held = tuple[ConnectionLease, int, str | None]


class ConnectionsTests(SynchronousTestCase):
    def test_a_device_may_have_a_few_at_once(self) -> None:
        connections = ConnectionLimits(100, 50)
        leases = [connections.admit(1, "POS_1") for _ in range(4)]
        error = self.assertRaises(TooManyRequests, connections.admit, 1, "POS_1")
        self.assertEqual((error.code, error.retry_after), ("too_many_connections", 60))
        self.assertIn("terminal", error.message)
        connections.admit(1, "POS_2")
        connections.admit(2, "POS_1")
        connections.admit(1, None)
        leases[0].release()
        connections.admit(1, "POS_1")

    def test_a_tenant_at_its_limit_is_refused_and_others_are_not(self) -> None:
        connections = ConnectionLimits(100, 2)
        connections.admit(1, None)
        connections.admit(1, "POS_1")
        error = self.assertRaises(TooManyRequests, connections.admit, 1, None)
        self.assertEqual((error.code, error.retry_after), ("too_many_connections", 60))
        self.assertIn("tenant", error.message)
        connections.admit(2, None)

    def test_a_full_server_is_overloaded_for_everybody(self) -> None:
        connections = ConnectionLimits(2, 2)
        lease = connections.admit(1, None)
        connections.admit(2, None)
        error = self.assertRaises(Unavailable, connections.admit, 3, "POS_1")
        self.assertEqual((error.status, error.code, error.retry_after), (503, "overloaded", 10))
        lease.release()
        connections.admit(3, "POS_1")

    def test_a_lease_is_given_back_once(self) -> None:
        connections = ConnectionLimits(100, 50)
        first, _ = connections.admit(1, "POS_1"), connections.admit(1, "POS_1")
        first.release()
        first.release()
        counts = (
            connections.open,
            connections.tenant_count(1),
            connections.device_count(1, "POS_1"),
        )
        self.assertEqual(counts, (1, 1, 1))

    def test_a_lower_limit_closes_nothing_and_lets_nobody_in(self) -> None:
        connections = ConnectionLimits(100, 50)
        leases = [connections.admit(1, None) for _ in range(3)]
        connections.per_tenant = 2
        leases[0].release()
        self.assertRaises(TooManyRequests, connections.admit, 1, None)
        leases[1].release()
        connections.admit(1, None)


class ConnectionsMachine(RuleBasedStateMachine):
    """Opens and closes connections in any order, and compares the counts with a plain list."""

    leases: Bundle[Held] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.connections = ConnectionLimits(6, 4, 2)
        self.present: list[tuple[int, str | None]] = []

    @rule(
        target=leases,
        tenant=st.integers(1, 3),
        device=st.none() | st.sampled_from(["POS_1", "POS_2"]),
    )
    def admit(self, tenant: int, device: str | None) -> Held | MultipleResults[Held]:
        tenant_count = sum(who == tenant for who, _ in self.present)
        try:
            lease = self.connections.admit(tenant, device)
        except TooManyRequests:
            assert tenant_count == 4 or self.present.count((tenant, device)) == 2
            return multiple()
        except Unavailable:
            assert len(self.present) == 6
            return multiple()
        assert len(self.present) < 6
        assert tenant_count < 4
        assert device is None or self.present.count((tenant, device)) < 2
        self.present.append((tenant, device))
        return lease, tenant, device

    @rule(held=consumes(leases), times=st.integers(1, 3))
    def release(self, held: Held, times: int) -> None:
        lease, tenant, device = held
        for _ in range(times):
            lease.release()
        self.present.remove((tenant, device))

    @invariant()
    def counts_are_those_of_who_is_there(self) -> None:
        assert self.connections.open == len(self.present)
        tenants = Counter(tenant for tenant, _ in self.present)
        devices = Counter(each for each in self.present if each[1] is not None)
        assert self.connections._tenant_counts == tenants
        assert dict(self.connections._tenant_counts) == dict(tenants)  # Counters of 0 are removed.
        assert dict(self.connections._device_counts) == dict(devices)


class ConnectionsLifeTests(SynchronousTestCase):
    def test_counts_are_right_after_any_order_of_opens_and_closes(self) -> None:
        run_state_machine_as_test(ConnectionsMachine)
