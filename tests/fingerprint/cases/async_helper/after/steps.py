async def helper(x):
    return x + 2

async def step(x):
    return await helper(x)
