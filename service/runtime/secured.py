"""What secures a server: certificates, and who may call. Both come from files, and are followed while it runs."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, Self

from ..admission.identity import Identity, IdentityError
from ..settings import SettingError, Settings
from ..telemetry import call_log
from . import stop, tls

_LOOK_SECONDS = 1.0


class Secured(NamedTuple):
    """As it was when the server started: a worker that takes another's place begins with it."""

    certificates: tls.Certificates | None
    """None: no TLS."""
    identity: Identity
    asked: int = 0
    """What `stop.asked_anew` said before the files were read."""

    @classmethod
    def of(cls, settings: Settings, names: Mapping[str, str] | None = None) -> Self:
        """Read the files that the settings name. Raises SettingError with all that is wrong.

        `names`: what to call settings in messages, as `Settings.names` tells it; None: by their variables.
        """
        names = names or Settings.variables()
        wrong: list[str] = []
        asked = stop.asked_anew()
        certificates, identity = None, Identity()
        try:
            certificates = tls.certificates(settings, names)
        except SettingError as error:
            wrong.append(str(error))
        try:
            identity = Identity(
                keys=settings.api_keys,
                callers=settings.callers,
                certificates=bool(settings.tls_client_ca) and not settings.behind_proxy,
                offered=settings.offered,
                names={"keys": names["api_keys"], "callers": names["callers"]},
                say=call_log.say,
                warn=call_log.warn,
            )
        except IdentityError as error:
            wrong.append(str(error))
        if wrong:
            raise SettingError("\n".join(wrong))
        return cls(certificates, identity, asked)

    @property
    def is_followed(self) -> bool:
        """Whether there are any files."""
        return self.certificates is not None or self.identity.is_asked

    def open_to_all(self) -> Self:
        """The same certificates, and nobody has to say who calls."""
        return self._replace(identity=Identity())

    async def follow(self) -> NoReturn:
        """Follow all files, until cancelled. Whatever goes wrong is told once, and they are followed on."""
        told, asked = "", self.asked
        while True:
            try:
                before, asked = asked, stop.asked_anew()
                anew = asked != before
                await self.identity.follow(anew=anew)
                if self.certificates is not None:
                    # Also where nobody connects for a while: all workers are to have the same.
                    await asyncio.to_thread(self.certificates.refresh, anew=anew)
                    if call_log.is_first():  # time passes for all workers alike
                        self.certificates.look_at_the_clock()
            except Exception as error:  # noqa: BLE001 - else a key that is revoked would be taken for good
                if told != (told := type(error).__name__):
                    call_log.warn("files can't be followed: %s", told)
            await asyncio.sleep(_LOOK_SECONDS)
