// Portkey listens on every interface and has no option for it; a benchmark stays on this machine.
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, host, ...rest) {
  return listen.call(this, port, typeof port === "number" ? "127.0.0.1" : host, ...rest);
};
