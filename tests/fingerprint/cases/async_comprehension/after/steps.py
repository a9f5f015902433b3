RATE = 4

async def items(n):
    for i in range(n):
        yield i * RATE

async def step(x):
    return [i async for i in items(x)]
