"""`manage.py create_member NAME`: give a person a role in an organization, and an account if they have
none."""

from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import services
from accounts.models import Organization, Role, User
from console.management.arguments import OPERATOR, say, secret_from
from kernel import clock


class Command(BaseCommand):
    help = "Give a person a role; makes the account and the organization where they do not exist."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", metavar="EMAIL_OR_NAME")
        parser.add_argument("--organization", default="Default")
        parser.add_argument("--role", required=True, choices=Role.values)
        parser.add_argument(
            "--password-env", default="", metavar="VAR", help="variable with a new account's password"
        )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        now, name = clock.now(), options["user"]
        organization = Organization.objects.filter(name=options["organization"]).first()
        if organization is None:
            organization = services.create_organization(name=options["organization"], actor=OPERATOR, now=now)
        user = User.objects.filter(username=name).first()
        if user is None:
            password = (
                secret_from(options["password_env"], "--password-env") if options["password_env"] else None
            )
            user = User(username=name, email=name if "@" in name else "")
            if password is not None:
                try:
                    validate_password(password, user)
                except ValidationError as error:
                    raise CommandError(f"--password-env: {' '.join(error.messages)}") from None
            user.set_password(password)  # None makes an account that cannot sign in with a password
            user.save()
        try:
            member = services.add_member(
                organization=organization, user=user, role=Role(options["role"]), actor=OPERATOR, now=now
            )
        except services.AlreadyMember as error:
            raise CommandError(f"EMAIL_OR_NAME: {error}") from None
        say(self, {"user": user.username, "organization": organization.name, "role": member.role})
