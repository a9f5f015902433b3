import contextlib

@contextlib.asynccontextmanager
async def scope(x):
    yield x + 2

async def step(x):
    async with scope(x) as y:
        return y
