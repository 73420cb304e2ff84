import pytest, trio, json
from tests.gateway.world import *
@pytest.mark.parametrize("stream",[True,False])
@pytest.mark.parametrize("wire",WIRES)
async def test_x(world, wire, stream):
    with trio.fail_after(10):
        r = await world.ask(wire, "@reason hm\n@say hello\n@tool bash {\"command\":\"ls\"}\n@usage 100 20 30 0 5", stream=stream)
    print(r.status_code, dict(r.headers)); print(r.text)
    a=world.provider.asked[-1]; print(a.path,a.headers,a.body)
    await world.gateway.settled("gogol_1")
    print(await world.rows()); print(world.events[-1])
    assert r.status_code==200
