--- A server with options that the command line has not, and all of a server's life: `lua5.4 reloading_server.lua OPTIONS SCRIPT…`, as
-- spec/peers/listening.lua has it. It logs errors, as text.
local listen = dofile(arg[0]:match "^(.*/)" .. "listening.lua")

local korv = require "korv"

korv.log.format "text"
korv.log.level "error"
listen():run()
os.exit(0, true)
