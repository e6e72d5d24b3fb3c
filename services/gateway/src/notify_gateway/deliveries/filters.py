"""Filters by the notification, which lists of notifications and of deliveries have in common."""

from datetime import timedelta
from typing import Annotated, Any, NamedTuple, Self
from uuid import UUID

from notify_common.contracts.ids import first_id_at, of_the_same_time
from notify_common.contracts.users import user_columns
from notify_common.runtime.clock import utc_now
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from notify_gateway.http.fields import Expansion, RequestModel, Time, UserKey

DEFAULT_WINDOW = timedelta(hours=24)
METADATA_PREFIX = "metadata."
MAX_METADATA_FILTERS = 5
# The names of these parameters are the client's own. With this style, a generated client sends each entry of the object
# as a parameter.
METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "description": "Only notifications whose metadata has this value, such as `metadata.order=5512`; at most "
    f"{MAX_METADATA_FILTERS} keys, each of which begins with `{METADATA_PREFIX}`.",
    "style": "form",
    "explode": True,
    "schema": {
        "type": "object",
        "maxProperties": MAX_METADATA_FILTERS,
        "propertyNames": {"pattern": r"^metadata\..+$"},
        "additionalProperties": {"type": "string"},
    },
}

Reference = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NotificationFilter(RequestModel, extra="allow"):
    """A page of what belongs to the notifications that match."""

    user_id: UserKey | None = None
    reference: Reference | None = None
    created_after: Time | None = Field(
        None,
        description="Only notifications created at or after this time. Without `user_id` and `reference`, defaults to "
        "24 hours before `created_before`.",
    )
    created_before: Time | None = Field(None, description="Only notifications created before this time.")
    expand: list[Expansion] = Field([], max_length=len(Expansion))
    limit: int = Field(50, ge=1, le=200)
    cursor: UUID | None = None

    @model_validator(mode="after")
    def _check_metadata(self) -> Self:
        extra = self.model_extra or {}
        for name, value in extra.items():
            if not name.startswith(METADATA_PREFIX) or name == METADATA_PREFIX:
                raise PydanticCustomError("extra_forbidden", "Extra inputs are not permitted", {"field": name})
            if not isinstance(value, str):
                raise PydanticCustomError("too_many", "must not be repeated", {"field": name})
        if len(extra) > MAX_METADATA_FILTERS:
            message = f"There are more than {MAX_METADATA_FILTERS} filters by metadata"
            raise PydanticCustomError("too_many", "{message}", {"field": METADATA_PREFIX, "message": message})
        return self

    @property
    def is_narrow(self) -> bool:
        """True if an index finds all notifications that match, so that the period needs no default."""
        return self.user_id is not None or self.reference is not None

    @property
    def is_plain(self) -> bool:
        """True if only a user or a reference is wanted, without attempts, so that there are few such statements."""
        if not self.is_narrow or Expansion.ATTEMPTS in self.expand:
            return False
        return not self.model_dump(exclude={"user_id", "reference", "limit", "expand"}, exclude_defaults=True)

    @property
    def metadata(self) -> dict[str, str]:
        """The values that the metadata must have, by key."""
        return {name.removeprefix(METADATA_PREFIX): value for name, value in (self.model_extra or {}).items()}


class Conditions(NamedTuple):
    """A filter in SQL."""

    on_notifications: list[str]
    """The conditions on notifications `n`, apart from their period."""
    first_id: UUID | None
    """The lowest id in the period."""
    end_id: UUID | None
    """The first id after the period."""
    values: dict[str, object]

    def period(self, column: str) -> list[str]:
        """Return the conditions on a column whose ids have the time of the notification."""
        bounds = ((self.first_id, f"{column} >= :first_id"), (self.end_id, f"{column} < :end_id"))
        return [condition for bound, condition in bounds if bound is not None]

    def weeks(self, column: str) -> str:
        """Return a condition on a column with ids of deliveries, with which PostgreSQL plans only for their weeks."""
        bounds = ((self.first_id, f"{column} >= :first_id"), (self.end_id, f"{column} <= :last_delivery_id"))
        return "".join(f" AND {condition}" for bound, condition in bounds if bound is not None)


def conditions(query: NotificationFilter, before: UUID | None = None) -> Conditions:
    """Return the filter in SQL; with `before`, only for ids before this one."""
    found = ["n.tenant = :tenant"]
    values: dict[str, object] = {}
    if query.user_id is not None:
        user_id, user_key = user_columns(query.user_id)
        name, value = ("user_id", user_id) if user_key is None else ("user_key", user_key)
        found.append(f"n.{name} = :{name}")
        values[name] = value
    if query.reference is not None:
        found.append("n.reference = :reference")
        values["reference"] = query.reference
    for number, (key, value) in enumerate(query.metadata.items()):
        found.append(f"n.metadata ->> :key_{number} = :value_{number}")
        values |= {f"key_{number}": key, f"value_{number}": value}
    after = query.created_after
    if after is None and not query.is_narrow:
        after = (query.created_before or utc_now()) - DEFAULT_WINDOW
    first_id = None if after is None else first_id_at(after)
    end_of_period = None if query.created_before is None else first_id_at(query.created_before)
    end_id = min((end for end in (end_of_period, before) if end is not None), default=None)
    values |= {name: bound for name, bound in (("first_id", first_id), ("end_id", end_id)) if bound is not None}
    if end_id is not None:
        # Deliveries carry the time of their notification, which may be that of `before`.
        _, values["last_delivery_id"] = of_the_same_time(end_id)
    return Conditions(found, first_id, end_id, values)
