"""A wireless network on one machine: namespaces for devices, shaped links, caps and slow processors.

python -m testbed up [SPEC]            make it
python -m testbed run [SPEC] -- ...    airtune server, agents and a run on it
python -m testbed down [SPEC]          take it down, whatever is left of it
"""
