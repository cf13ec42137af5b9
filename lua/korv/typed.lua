--- What people type, in place of messages: `ssh HOST COMMAND`, and `ssh HOST` at a terminal. Decides who speaks for the server.
-- @module korv.typed

local commandline = require "korv.commandline"
local console = require "korv.console"

--- Makes what the core asks when such a channel opens.
-- @tparam table server
-- @treturn function called with the core's caller, the peer, the command (nil: none) and the terminal (nil: none); returns its handlers
return function(server)
  return function(caller, peer, command, terminal)
    if command then return commandline.open(caller, peer, command, terminal, server) end
    return console.open(caller, peer, terminal, server)
  end
end
