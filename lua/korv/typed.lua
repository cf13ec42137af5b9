--- What people type, in place of messages: `ssh HOST COMMAND`, and `ssh HOST` at a terminal. Decides who speaks for the server.
-- @module korv.typed

local commandline = require "korv.commandline"

local function no_console(caller)
  caller:write("korv: there is no console here; `ssh HOST help` says what there is\r\n", true)
  caller:finish(commandline.USAGE)
  return {}
end

--- Makes what the core asks when such a channel opens.
-- @tparam table server
-- @treturn function called with the core's caller, the peer, the command (nil: none) and the terminal (nil: none); returns its handlers
return function(server)
  return function(caller, peer, command, terminal)
    if command then return commandline.open(caller, peer, command, terminal, server) end
    return no_console(caller)
  end
end
