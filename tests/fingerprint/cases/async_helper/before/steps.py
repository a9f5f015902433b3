async def helper(x):
    return x + 1

async def step(x):
    return await helper(x)
