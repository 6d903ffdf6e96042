"""Commands' options that had another word before; see `fedlatent.client.edge.commands.renamed`."""

#: By command: what an option was called, and is called now.
RENAMED = {
    "data check": {"--data": "--data-sets"},
    "data describe": {"--output": "--out"},
    "data get": {"--data": "--data-sets"},
    "data list": {"--data": "--data-sets"},
    "demo": {"--folder": "--out"},
    "client init": {"--name": "--data-name"},
    "client join": {"--name": "--data-name"},
    "export global": {"--labels": "--label"},
    "export site": {"--labels": "--label"},
    "privacy plan": {"--person-records": "--person-cap"},
    "release add": {"--sign-with": "--signing-key", "--device": "--device-id"},
    "release refresh": {"--sign-with": "--signing-key"},
    "release rollout": {"--sign-with": "--signing-key", "--device": "--device-id"},
    "release rotate": {"--sign-with": "--signing-key"},
    "release withdraw": {"--sign-with": "--signing-key"},
    "server init": {"--name": "--dns-name"},
    "server invite": {"--output": "--out"},
    "server run": {"--run-id": "--run"},
    "simulate compare": {"--output": "--out"},
    "simulate list": {"--out": "--results"},
    "simulate report": {"--output": "--out"},
}
