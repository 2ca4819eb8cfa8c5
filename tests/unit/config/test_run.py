"""Which processes the product is made of."""

from config.environment import read
from config.run import Program, programs


def gateways(processes: str) -> list[Program]:
    found = programs(read({"RATCHET_GATEWAY_PROCESSES": processes}))
    return [program for program in found if program.name.startswith("gateway")]


def test_one_gateway_has_its_port_to_itself() -> None:
    (gateway,) = gateways("1")
    assert gateway.name == "gateway"
    assert "--share-port" not in gateway.arguments


def test_several_gateways_share_a_port() -> None:
    found = gateways("3")
    assert [gateway.name for gateway in found] == ["gateway-1", "gateway-2", "gateway-3"]
    assert len({tuple(gateway.arguments) for gateway in found}) == 1
    assert "--share-port" in found[0].arguments
