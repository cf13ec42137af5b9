-- An endpoint that waits holds up nobody else.
local korv = require "korv"

return function(app)
  app:get("/wait/:seconds", { doc = "Answers after that many seconds, at most 10." }, function(request)
    local seconds = tonumber(request.params.seconds)
    if not seconds or not (seconds >= 0 and seconds <= 10) then return 400, { message = "seconds: a number from 0 to 10" } end
    korv.sleep(seconds)
    return 200, { waited = seconds }
  end)
end
