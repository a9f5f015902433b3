"""
What Prefect costs, and what a call costs here: ``python tests/benchmarks/bench.py --help``.

bench        the command: its options, its progress, what it writes
├── steps, concurrency, scale    the three sections of a run
└── report, chart                a run's JSON as Markdown and as SVG
rig          the temporary project, servers, relays and processes of a run; all are gone after it
├── workloads    the same steps for pfl and for plain Prefect, and two edits of them
├── relay        a loopback proxy that delays and counts
└── sandbox      a process that answers calls, as a Lambda sandbox does
latency      a miss over a network with latency, in pfl and in other tools
publish      a run and other tools (rivals, rival), written to docs/benchmarks.md
expect       counts that must not change unnoticed, written to expected.json
"""
