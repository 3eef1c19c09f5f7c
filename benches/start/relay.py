"""A relay that takes every mail and counts it: relay.py PORT_FILE COUNT_FILE. Ends with its parent."""
import asyncio
import sys

port_file, count_file = sys.argv[1:]
taken = 0


async def converse(reader, writer):
    global taken
    writer.write(b"220 sink\r\n")
    in_data = False
    while line := await reader.readline():
        if in_data:
            if line != b".\r\n":
                continue
            in_data = False
            taken += 1
            with open(count_file, "w") as file:
                file.write(str(taken))
            writer.write(b"250 taken\r\n")
        elif line.upper().startswith(b"DATA"):
            in_data = True
            writer.write(b"354 go on\r\n")
        elif line.upper().startswith(b"QUIT"):
            break
        else:
            writer.write(b"250 ok\r\n")
    writer.close()


async def main():
    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    with open(port_file, "w") as file:
        file.write(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()


asyncio.run(main())
