from dataclasses import dataclass
@dataclass(slots=True)
class M:
    x: int | None = None
def step():
    try: return M().x
    except Exception: return "missing"
