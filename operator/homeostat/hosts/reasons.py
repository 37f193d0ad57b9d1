# SPDX-License-Identifier: Apache-2.0
"""Why a host cannot be used, as a word and a sentence. The one table of it."""

from __future__ import annotations

import re

from homeostat.hosts.driver import AUTH_FAILED, INVALID_ARG, OPERATION_TIMEOUT, HostError, HostUnreachable

_BY_CODE = {OPERATION_TIMEOUT: "ConnectTimeout", INVALID_ARG: "InvalidURI"}

# In the order they are tried, on libvirt's own words.
_BY_WORDS = (
    ("TLSFailed", r"certificate|TLS|x509|private key"),
    ("ConnectionRefused", r"Connection refused"),
    ("NameNotFound", r"Unable to resolve address|Name or service not known|No address associated"),
    ("NoRoute", r"No route to host|(Network|Host) is (unreachable|down)"),
    ("ConnectTimeout", r"Connection timed out"),
    ("NoSocket", r"Failed to connect socket"),
    ("NotLibvirt", r"packet \d+ bytes received from server (too large|too small)"),
    ("NotResponding", r"not answered within|no answer to keep-alive"),
    ("ConnectionLost", r"End of file|reset by peer|Broken pipe|client socket is closed|connection was (lost|closed)"),
)

SENTENCES = {
    "AuthFailed": "the host refused the login",
    "CallFailed": "the host does not say",
    "ConnectTimeout": "the host does not answer to a connection attempt",
    "ConnectionLost": "the host closed the connection",
    "ConnectionRefused": "the host answers, but nothing listens on that port: its libvirt daemon is not running or "
    "does not listen",
    "ConnectFailed": "libvirt cannot connect",
    "IdentityMismatch": "another host answers at this address",
    "InternalError": "a fault of the operator, not of the host",
    "InvalidURI": "the address cannot be used",
    "NameNotFound": "the host's name cannot be resolved",
    "NoRoute": "there is no route to the host",
    "NoSocket": "no libvirt daemon listens on this machine",
    "NotLibvirt": "what answers at this address does not speak libvirt's protocol",
    "NotResponding": "the host is connected but does not answer",
    "TLSFailed": "TLS could not be set up",
}


def explain(error: HostError) -> tuple[str, str]:
    """(reason, sentence) for an error that keeps a host from being used; the sentence ends in libvirt's own words."""
    return sentence(_reason(error), error.message)


def sentence(reason: str, details: str) -> tuple[str, str]:
    """(reason, sentence) for a reason of this table."""
    return reason, f"{SENTENCES[reason]}: {details}" if details else SENTENCES[reason]


def _reason(error: HostError) -> str:
    if not isinstance(error, HostUnreachable):
        return "CallFailed"
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    for reason, words in _BY_WORDS:
        if re.search(words, error.message):
            return reason
    return "AuthFailed" if error.code == AUTH_FAILED else "ConnectFailed"
