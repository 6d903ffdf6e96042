"""What our launchers change in Flower, in the one process that they run it in.

Flower serves its APIs on TCP ports that ask for no login, connects to them by address, and hands
tasks their tokens as arguments. Here every server listens on a Unix socket that only its owner can
open, every client connects to one, and a token reaches its task through a pipe. Each change first
looks whether Flower has the place that it replaces, and refuses to go on if not.
"""

import contextlib
import functools
import importlib
import inspect
import logging
import os
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import httpx

from fedlatent.shared.contact import FOLDER_VARIABLE, Contact
from fedlatent.shared.errors import FedlatentError, ServiceError
from fedlatent.shared.processes import hang_up_is_terminate
from fedlatent.shared.sockets import prepare_socket

_SCHEME = "unix:"
_BASE_URL = "http://flower"  # the name in it means nothing on a Unix socket
_TIMEOUT_S = 30.0  # Flower's own
_BEAT_S = 10  # the least interval of signs of life that Flower's server takes
_PRIVATE = 0o177  # what a socket's mode lacks: 0600 is left


def address_of(path: Path) -> str:
    """A Unix socket as an argument of Flower's programs, in place of a host or an address."""
    return f"{_SCHEME}{path}"


def reach_of(path: Path) -> str:
    """One sentence for people on who can reach the Flower behind a socket."""
    return f"Flower listens on Unix sockets in {path.parent} that only this account can open"


def replace(owner: ModuleType | type, replacements: Mapping[str, object], where: str) -> None:
    """Put our functions in the place of Flower's.

    Args:
        owner: the module or class that has them.
        replacements: ours, by the name of the one each replaces.
        where: name of the owner, for people.

    Raises:
        ServiceError: this Flower lacks one of them; nothing is replaced then.
    """
    missing = [name for name in replacements if not callable(getattr(owner, name, None))]
    _require(not missing, f"{where} with {', '.join(missing)}")
    for name, replacement in replacements.items():
        setattr(owner, name, replacement)


def use_own_code(runtime: ModuleType, replacements: Mapping[str, object], where: str) -> None:
    """Make a runtime of Flower's leave sent apps packed, install nothing, and do as replaced.

    Args:
        runtime: the module that runs an app.
        replacements: as for ``replace``, beside those for packages and installations.
        where: name of the module, for people.

    Raises:
        ServiceError: this Flower has another runtime, which must not be started.
    """
    ours = {"install_from_fab": leave_packed, "install_app_dependencies": _refuse_installation}
    replace(runtime, {**ours, **replacements}, where)


def leave_packed(*_: object, **__: object) -> Path:
    """Stands in for what unpacks an app or looks into it: nothing is written."""
    return Path()


def _refuse_installation(*_: object, **__: object) -> NoReturn:
    raise ServiceError("Expected a run without installations, got one with; it is refused here.")


def prepare_task(
    role: str, task: str, launcher: str, change: Callable[[ModuleType], None], runtime: str
) -> list[str]:
    """Change Flower for its starter of tasks, or for the task; gives the program's arguments.

    Args:
        role: "superexec" or ``task``; nothing is done for others.
        task: role of the task, "clientapp" or "serverapp".
        launcher: our module that starts the task.
        change: puts our functions into the runtime's module.
        runtime: name of that module.
    """
    if role == "superexec":
        launch_tasks(f"flwr-{task}", launcher, task)
    elif role == task:
        change(importlib.import_module(runtime))
        return [f"--token={read_token()}"]
    return []


def connect(remote: Callable[[], ssl.SSLContext] | None = None) -> None:
    """Make Flower's HTTP clients connect over Unix sockets, and note their last contact.

    Args:
        remote: makes the TLS context for a server that is not on this machine; without it, an
            address that is no socket is refused.

    Raises:
        ServiceError: this Flower has other clients.
    """
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.supercore.retry import RetryInvoker

    taken = set(inspect.signature(ProtobufClient.__init__).parameters)
    needed = {"base_url", "interceptors", "verify", "retry_invoker"}
    _require(needed <= taken, f"ProtobufClient of {', '.join(sorted(needed))}")

    def from_server_address(
        cls: type[ProtobufClient],
        server_address: str,
        insecure: bool,
        root_certificates: bytes | str | None,
        interceptors: Sequence[Any],
        *,
        retry_invoker: RetryInvoker | None = None,
    ) -> ProtobufClient:
        path = _path_of(server_address)
        if path is None and (remote is None or insecure):
            raise ServiceError(
                f"Expected a Unix socket to connect to, got {server_address}; start Flower "
                "through 'fedlatent server start' or 'fedlatent client start'."
            )
        verify = remote() if path is None and remote is not None else False
        made = cls(
            _BASE_URL if path is not None else f"https://{server_address}",
            interceptors=interceptors,
            verify=verify,
            retry_invoker=retry_invoker,
        )
        _require(isinstance(getattr(made, "_client", None), httpx.Client), "an httpx.Client")
        made._client.close()
        made._client = _http_client(path, verify)
        return made

    replace(
        ProtobufClient,
        {"from_server_address": classmethod(from_server_address)},
        "ProtobufClient",
    )


def listen(program: str) -> None:
    """Make one of Flower's servers listen on a Unix socket of mode 0600, and on nothing else.

    Args:
        program: the console program, whose ``--host`` is the ``address_of`` that socket.

    Raises:
        ServiceError: this Flower serves by other means.
    """
    import uvicorn

    original = uvicorn.Config.__init__
    needed = {"host", "fd", "ssl_keyfile", "ssl_certfile"}
    _require(needed <= set(inspect.signature(original).parameters), "uvicorn.Config")
    module = sys.modules[_entry(program).__module__]
    _require(getattr(module, "uvicorn", None) is uvicorn, f"uvicorn in {module.__name__}")

    @functools.wraps(original)
    def configure(config: uvicorn.Config, *args: object, **kwargs: object) -> None:
        original(config, *args, **kwargs)  # type: ignore[arg-type]
        path = _path_of(config.host)
        if path is None:
            raise ServiceError(
                f"Expected a Unix socket to listen on, got {config.host}; start Flower through "
                "'fedlatent server start' or 'fedlatent client start'."
            )
        config.ssl_keyfile = config.ssl_certfile = None
        config.fd = bind_private(path).detach()

    replace(uvicorn.Config, {"__init__": configure}, "uvicorn.Config")


def bind_private(path: Path) -> socket.socket:
    """Bind a Unix socket that nobody but its owner can ever connect to.

    Raises:
        ServiceError: its folder is open to others, or the path is too long.
    """
    prepare_socket(path).unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(_PRIVATE)
    try:
        bound.bind(str(path))
    finally:
        os.umask(before)
    return bound


def launch_tasks(task: str, module: str, role: str) -> None:
    """Make Flower's SuperExec start tasks of one type, by our launcher, their token in a pipe.

    Args:
        task: the type, as Flower calls it; tasks of other types would run code that was sent.
        module: of the launcher.
        role: its first argument.

    Raises:
        ServiceError: this Flower starts tasks by other means.
    """
    from flwr.supercore.superexec.executor import SubprocessExecutor
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

    needed = {"task_type", "runtime_api_address", "token", "parent_pid", "suppress_output"}
    taken = set(inspect.signature(ExecutionSpec).parameters)
    _require(needed <= taken, f"ExecutionSpec of {', '.join(sorted(needed))}")

    def launch(_self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        if spec.task_type != task:
            return LaunchResult.failed(f"Expected a task {task}, got {spec.task_type}; refused.")
        command = [sys.executable, "-P", "-m", module, role]
        command += ["--insecure", "--runtime-api-address", spec.runtime_api_address]
        if spec.parent_pid is not None:
            command += ["--parent-pid", str(spec.parent_pid)]
        output = subprocess.DEVNULL if spec.suppress_output else None
        hidden = {FOLDER_VARIABLE}  # the contact of SuperExec is not its tasks'
        process = subprocess.Popen(
            command,
            env={key: value for key, value in os.environ.items() if key not in hidden},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(spec.token.encode())
        return LaunchResult.accepted()

    replace(SubprocessExecutor, {"launch": launch}, "SubprocessExecutor")


def keep_objects_flat() -> None:
    """Make Flower's stores take each message with all its objects right below it.

    Flower believes whoever names an object first about what it consists of, and turns away whoever
    says otherwise later. Names are hashes of what others send too, so one site could stop them all
    by a false word. Here no object but a message consists of others, and there is nothing to say.

    Raises:
        ServiceError: this Flower has other stores.
    """
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.supercore.object_store.sql_object_store import SqlObjectStore

    def flat(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
        @functools.wraps(original)
        def preregister(store: object, run_id: int, object_tree: ObjectTree) -> list[str]:
            names, waiting = dict[str, None](), list(reversed(object_tree.children))
            while waiting:
                one = waiting.pop()
                names[one.object_id] = None
                waiting.extend(reversed(one.children))
            below = [ObjectTree(object_id=name) for name in names]
            return original(
                store, run_id, ObjectTree(object_id=object_tree.object_id, children=below)
            )

        return preregister

    for store in (InMemoryObjectStore, SqlObjectStore):
        original = getattr(store, "preregister", None)
        taken = inspect.signature(original).parameters if callable(original) else ()
        _require(list(taken) == ["self", "run_id", "object_tree"], f"{store.__name__}.preregister")
        replace(store, {"preregister": flat(store.preregister)}, store.__name__)


def beat_often() -> None:
    """Make SuperNode give a sign of life every few seconds, in place of each half a minute.

    The server takes a node for alive until two of its signs are missing, and lets nobody else in
    with its key meanwhile: a node that was killed is so let in again after 20 s, not after 60.

    Raises:
        ServiceError: this Flower counts by another constant, or refuses so short an interval.
    """
    from flwr.common import constant
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    name, least = "HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_MIN_INTERVAL"
    _require(getattr(constant, least, _BEAT_S + 1) <= _BEAT_S, f"{least} of {_BEAT_S} s")
    for module in (heartbeat, fleet_http_connection):
        _require(isinstance(getattr(module, name, None), int), f"{module.__name__}.{name}")
        setattr(module, name, _BEAT_S)


def read_token() -> str:
    """The token that SuperExec has put into the pipe on standard input.

    Raises:
        ServiceError: there is none.
    """
    token = sys.stdin.readline().strip()
    if not token:
        raise ServiceError("Expected a task's token on standard input, got none; refused.")
    return token


def start(programs: Mapping[str, str], prepare: Callable[[str, str], Sequence[str]]) -> NoReturn:
    """The command line of a launcher: a role, then the arguments of Flower's program.

    Args:
        programs: Flower's console program of each role.
        prepare: changes Flower for a role and its program; gives further arguments.
    """
    role, *arguments = sys.argv[1:]
    if role not in programs:
        sys.exit(f"Expected one of {', '.join(programs)}, got {role!r}; correct it.")
    hang_up_is_terminate()
    try:
        further = prepare(role, programs[role])
    except FedlatentError as error:
        sys.exit(str(error))
    run(programs[role], [*arguments, *further])


def run(program: str, arguments: Sequence[str]) -> NoReturn:
    """Run one of Flower's console programs, then end this process, whatever threads are left.

    A program that returns has given up: SuperNode's does on an answer it did not expect, while its
    HTTP server's thread would keep the process alive for ever. The status says so.
    """
    sys.argv = [program, *arguments]
    status = 1
    try:
        _entry(program)()
        print(f"{program} returned", file=sys.stderr)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _http_client(path: Path | None, verify: ssl.SSLContext | bool) -> httpx.Client:
    """Flower's own settings but for redirects, which lead away from where we are sure to be."""
    contact = Contact.of_process()
    hooks: dict[str, list[Callable[..., Any]]] = {}
    if contact is not None:
        hooks["request"] = [lambda _request: contact.tried()]
        hooks["response"] = [lambda _response: contact.answered()]
    transport = None if path is None else httpx.HTTPTransport(uds=str(path), verify=False)
    return _Client(
        transport=transport,
        verify=verify,
        timeout=_TIMEOUT_S,
        follow_redirects=False,
        event_hooks=hooks,
    )


class _Client(httpx.Client):
    """One whose broken lines are called so.

    Flower's retries give up on an error that names TLS, which is right for a certificate and wrong
    for a line that ended within a handshake, as while a server or a proxy starts again.
    """

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:  # noqa: ANN401
        """Send as the original does.

        Raises:
            httpx.TransportError: of the same kind, in other words where the line broke.
        """
        try:
            return super().send(request, **options)
        except httpx.TransportError as error:
            if not _line_broke(error):
                raise
            raise type(error)("the line broke", request=request) from None


def _line_broke(error: BaseException) -> bool:
    """Whether TLS met the end of the line, somewhere beneath what httpx raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLEOFError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _entry(program: str) -> Callable[[], object]:
    """The function behind a console program."""
    found = list(entry_points(group="console_scripts", name=program))
    _require(len(found) == 1, f"the program {program}")
    function: Callable[[], object] = found[0].load()
    return function


def _path_of(address: str) -> Path | None:
    return Path(address.removeprefix(_SCHEME)) if address.startswith(_SCHEME) else None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ServiceError(
            f"Expected Flower with {what}, got another; install the pinned version of flwr."
        )
