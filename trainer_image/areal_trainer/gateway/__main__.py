"""The gateway's process: ``python -m areal_trainer.gateway FD``, started by the trainer.

The file descriptor is a socket to the trainer, whose first frame holds the settings. The process ends with the trainer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import uvloop

from areal_api import logs
from areal_trainer.data.tokenizer import Codec, load_hf_tokenizer, render_prompt
from areal_trainer.gateway.app import make_app
from areal_trainer.gateway.channel import Counted, Listening, read_frame
from areal_trainer.gateway.completer import Completer
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.engine_client import EngineClient
from areal_trainer.gateway.messages import Message
from areal_trainer.gateway.server import listen, make_server
from areal_trainer.gateway.sessions import Counters, Sessions
from areal_trainer.gateway.settings import GatewaySettings

COUNT_S = 0.5
# Allocations between two garbage collections. Nearly all objects of a request are freed without one. At Python's
# default of 700, collections take a third of the process's CPU time.
COLLECT_AFTER = 20_000


async def run(channel: socket.socket) -> None:
    """Serve until the trainer closes the channel."""
    reader, writer = await asyncio.open_connection(sock=channel)
    settings = GatewaySettings.model_validate_json(await read_frame(reader))
    tokenizer = load_hf_tokenizer(settings.tokenizer)
    codec = Codec(tokenizer)
    engine = EngineClient(reader, writer)

    def render(messages: list[Message], tools: list[Message]) -> str:
        return render_prompt(tokenizer, messages, tools=tools or None, **settings.chat_template_kwargs)

    new_tree = partial(ConversationTree, render, partial(codec.encode, add_special_tokens=False))
    sessions = Sessions(settings.agent, admin_key=settings.admin_key, new_tree=new_tree)
    completer = Completer(
        engine, sessions, codec, settings.agent, gconfig=settings.gconfig, eval_gconfig=settings.eval_gconfig
    )
    app = make_app(sessions, completer, settings.agent, model=settings.model)
    listener = listen(settings.host, settings.port)
    server = make_server(app)
    engine.send(Listening(listener.getsockname()[1]))
    serving = asyncio.create_task(server.serve([listener]))
    counting = asyncio.create_task(report_counts(sessions.counters, engine.send))
    gc.collect()
    gc.freeze()  # later collections leave out the objects of the libraries and the tokenizer
    gc.set_threshold(COLLECT_AFTER)
    await engine.serve()
    counting.cancel()
    server.should_exit = True
    await serving


async def report_counts(counters: Counters, send: Callable[[Counted], None]) -> None:
    """Send the counters to the trainer whenever they have changed, at most once per ``COUNT_S``."""
    sent: dict[str, int] = {}
    while True:
        if (counts := asdict(counters)) != sent:
            send(Counted(sent := counts))
        await asyncio.sleep(COUNT_S)


def main(arguments: list[str]) -> None:
    """Run the process."""
    logs.set_up()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides when to end
    uvloop.run(run(socket.socket(fileno=int(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
