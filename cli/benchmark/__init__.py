"""
What ``pfl bench`` measures, and how.

rig          the temporary project, servers, relays and processes of a run; all of it is gone after the run
├── workloads    the same steps for pfl and for plain Prefect, and two edits of them
├── relay        a loopback proxy that delays and counts
└── sandbox      a process that answers calls, as a Lambda sandbox does
steps, concurrency, scale    the three sections of a run
report, chart    a run's JSON as Markdown and as SVG
"""
